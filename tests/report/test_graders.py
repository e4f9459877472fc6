"""Where math-verify alone decides otherwise: a column for tasks that can ask it, a reason where it cannot be asked."""

import weakref
from types import SimpleNamespace

import pytest
from report_example import HOSTILE_PROBLEM, SMALL, analysis, events, protocol
from test_report_pages import Page

from cask_eval.report import format as fmt
from cask_eval.report import gather, html, markdown
from cask_eval.report.graders import NOTE, Differences, compare
from cask_eval.tasks import Problem, chain, graded

CELL = f"{SMALL}/b64"


def record(arm, problem, correct, output="", **fields):
    base = dict(cell=CELL, arm=arm, phase="heldout", status="finished", problem=problem, output=output)
    return SimpleNamespace(**{**base, "grade": SimpleNamespace(correct=correct), **fields})


def pages(differences):
    data = gather(analysis(), protocol(), events(), differences=differences)
    return Page(html.render(data)), markdown.render(data)


def test_each_output_is_held_against_the_recorded_verdict():
    says = {"same": True, "stricter": False, "laxer": True, "open": None}
    task = SimpleNamespace(plain=lambda problem, output: says[output])
    rows = [
        record("baseline", "1", True, "same"),
        record("baseline", "2", True, "stricter"),
        record("baseline", "3", False, "laxer"),
        record("baseline", "4", False, "open"),
        record("candidate", "5", True, "same"),
        record("candidate", "6", False, "stricter", status="failed"),
        record("candidate", "7", False, "laxer", phase="dev"),
    ]
    found = compare(rows, task, {str(n): None for n in range(1, 6)})
    baseline = found.of[CELL, "baseline"]
    assert (baseline.right, baseline.wrong, baseline.undecided) == (("2",), ("3",), 1)
    assert found.count(CELL, "baseline") == "2 (1 open)" and found.count(CELL, "candidate") == "0"
    assert found.count(CELL, "full") == fmt.DASH


def test_the_tasks_with_a_second_opinion_ask_math_verify_itself():
    problem = Problem("a", "?", "x^2+50=0")
    assert graded.plain(problem, r"So $\\boxed{x^2+80=0}$.") is True
    assert graded.grade(problem, r"So $\\boxed{x^2+80=0}$.").correct is False
    rows = [record("candidate", "a", False, r"So $\\boxed{x^2+80=0}$.")]
    assert compare(rows, graded, {"a": problem}).of[CELL, "candidate"].wrong == ("a",)


def test_without_the_problems_the_page_says_so():
    found = compare([record("baseline", "1", True)], graded, {})
    assert not found.of and "1 of 1" in found.absent
    page, plain = pages(found)
    assert found.absent in page.text and markdown.escape(found.absent) in plain
    assert "math-verify differs" not in page.text


def test_the_chain_task_has_none_and_its_pages_do_not_mention_it():
    assert not compare([record("baseline", "1", True)], chain, {"1": None})
    page, plain = pages(Differences())
    assert "math-verify" not in page.text and "math-verify" not in plain


@pytest.mark.parametrize("problem", ["algebra/7", HOSTILE_PROBLEM])
def test_pages_show_them(problem):
    task = SimpleNamespace(plain=lambda problem, output: False)
    rows = [record("candidate", problem, True), record("baseline", "8", False)]
    page, plain = pages(compare(rows, task, {problem: None, "8": None}))
    for shown in (NOTE, "math-verify differs", fmt.one_line(problem)):
        assert shown in page.text and markdown.escape(shown) in plain
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    heads = [line for line in plain.splitlines() if "math-verify differs" in line]
    rows_below = plain[plain.index(heads[0]) :].splitlines()[2:]
    assert all(line.count(" | ") == heads[0].count(" | ") for line in rows_below[: rows_below.index("")])


def test_a_page_does_not_say_where_files_lie_on_this_machine():
    from cask_eval.cli.report import _without

    said = "math.jsonl is not there; /home/me/study/math.jsonl is no file; /data/sets/math.jsonl is no file"
    kept = "math.jsonl is not there; math.jsonl is no file; math.jsonl is no file"
    assert _without(said, ["/home/me/study", "/data/sets"]) == kept


def test_few_outputs_are_held_at_once():
    """A study of a million outputs is asked about as it is read."""
    alive = []

    def each():
        for n in range(2000):
            alive.append(weakref.ref(one := Output()))
            yield record("baseline", str(n), n % 3 == 0, one)
        assert sum(ref() is not None for ref in alive) < 600

    class Output:
        pass

    said = []
    problems = dict.fromkeys(map(str, range(2000)))
    found = compare(each(), SimpleNamespace(plain=lambda problem, output: True), problems, said.append)
    assert len(found.of[CELL, "baseline"].wrong) == 1333
    assert said == ["asking math-verify about more than 1,000 outputs"]
    del problems["1999"]
    absent = compare(each(), SimpleNamespace(plain=lambda *_: True), problems).absent
    assert absent == "the texts of 1 of 2,000 trials' problems are not at hand"
