"""Anybody's rows as problems, and how rows of the public sets are read."""

import json

import pytest

from cask_eval import grading
from cask_eval.tasks import data, jsonl, sets
from cask_eval.tasks.vote import elect

ROWS = [
    {"key": "q1", "ask": "1 + 1?", "gold": "so #### 2", "kind": "sum", "level": 1},
    {"key": "q2", "ask": "2 / 4?", "gold": "\\boxed{\\frac12}", "kind": "quotient", "level": 2},
    {"key": "q3", "ask": "2 + 2?", "gold": 4, "kind": "sum", "level": 1},
]
FIELDS = {"id": "key", "problem": "ask", "answer": "gold", "strata": "kind,level"}


@pytest.fixture
def put(tmp_path):
    """put(rows) makes mine.jsonl hold them."""

    def write(rows):
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(ROWS)
    with data.inside(tmp_path):
        yield write


def test_fields_are_mapped(put):
    first, second, third = jsonl.problems({"file": "mine.jsonl", **FIELDS})
    assert (first.id, first.prompt, first.answer, first.stratum) == ("q1", "1 + 1?", "so #### 2", "sum / 1")
    assert third.answer == "4"
    assert jsonl.problems({"file": "mine.jsonl", **FIELDS, "start": 1, "count": 1}) == [second]
    assert [p.id for p in jsonl.problems({"file": "mine.jsonl", **FIELDS, "id": ""})] == ["0", "1", "2"]
    cut = jsonl.problems({"file": "mine.jsonl", **FIELDS, "part": "heldout", "dev": 1, "seed": 0})
    assert len(cut) == 2


@pytest.mark.parametrize(
    "params, message",
    [
        ({"colour": 1}, "colour is no parameter of the jsonl task; use file"),
        ({"rule": "guess"}, "rule is 'guess'; use one of boxed"),
        ({"integers": 2}, "integers is 2"),
        ({"problem": "question"}, "row 1: there is no field 'question'; it has key, ask"),
        ({"problem": 3}, "problem is 3; give the name of a field"),
        ({"start": 4}, "start is 4; give a whole number from 0 to 3"),
        ({"count": 9}, "count is 9"),
        ({"file": "gone.jsonl"}, "gone.jsonl is not there"),
    ],
)
def test_what_is_wrong_is_said(put, params, message):
    with pytest.raises(ValueError, match=message):
        jsonl.problems({"file": "mine.jsonl", **FIELDS, **params})


def test_an_empty_text_is_refused(put):
    put([{**ROWS[0], "ask": " "}])
    with pytest.raises(ValueError, match="row 1: ask is ' '"):
        jsonl.problems({"file": "mine.jsonl", **FIELDS})


def test_grades_come_from_the_grader_by_the_declared_rule(put):
    boxed, half, _ = jsonl.problems({"file": "mine.jsonl", **FIELDS})
    loose, *_ = jsonl.problems({"file": "mine.jsonl", **FIELDS, "rule": "last-number"})
    whole = jsonl.problems({"file": "mine.jsonl", **FIELDS, "integers": 1})[1]
    right = jsonl.grade(half, r"it is \boxed{0.5}")
    assert (right.correct, right.extracted, right.grader) == (True, "0.5", grading.VERSION)
    assert jsonl.GRADER == sets.GSM8K.GRADER == grading.VERSION
    assert right.how.startswith("boxed/")
    assert not jsonl.grade(boxed, "so 2").correct and jsonl.grade(loose, "so 2").correct
    assert not jsonl.grade(whole, r"\boxed{0.5}").correct
    assert jsonl.grade(boxed, "") == jsonl.grade(boxed, "") and jsonl.grade(boxed, "").extracted is None


def test_a_vote_counts_equal_answers_as_one(put):
    half = jsonl.problems({"file": "mine.jsonl", **FIELDS})[1]
    outputs = [r"\boxed{3}", r"\boxed{1/2}", "no answer", r"\boxed{0.5}"]
    assert elect(jsonl, [jsonl.grade(half, text) for text in outputs]) == 1
    assert elect(sets.MATH500, [sets.MATH500.grade(half, text) for text in outputs]) == 1


def test_rows_of_the_public_sets(tmp_path):
    def read(task, rows, **params):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with data.at(tmp_path / "rows.jsonl"):
            return task.problems(params)

    row = {"problem": "P", "answer": "5", "subject": "Algebra", "level": 3, "unique_id": "test/algebra/1.json"}
    (one,) = read(sets.MATH500, [row])
    assert (one.id, one.stratum, one.rule) == ("test/algebra/1.json", "Algebra / level 3", "boxed")
    (one,) = read(sets.GSM8K, [{"question": "Q", "answer": "a\nb\n#### 1,000"}])
    assert (one.id, one.answer, one.stratum, one.rule) == ("gsm8k/test/0", "1,000", "2 steps", "final")
    assert sets.GSM8K.grade(one, "so 500 + 500.\n#### 1000").correct
    (one,) = read(sets.AIME24, [{"problem": "P", "expected_answer": "073"}])
    assert (one.id, one.integers) == ("aime24-0", True)
    assert sets.AIME24.grade(one, r"\boxed{73}").correct and not sets.AIME24.grade(one, r"\boxed{146/2}").correct
    (one,) = read(sets.AIME, [{"problem": "P", "answer": 5}], year=2025)
    assert one.id == "aime25-0"
    for task, rows, params, message in [
        (sets.GSM8K, [{"question": "Q", "answer": "a"}], {}, "row 1: answer has no ####"),
        (sets.MATH500, [{"problem": "P"}], {}, "row 1: there is no field 'subject'"),
        (sets.AIME, [], {}, "year is None; use 2024 or 2025"),
        (sets.AIME24, [{"problem": "P", "answer": "x"}], {}, "AIME's are whole numbers"),
        (sets.MATH500, [], {"year": 1}, "year is no parameter"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(task, rows, **params)


def test_another_source_is_not_taken_for_the_frozen_one():
    source, _ = sets.MATH500.describe({"file": "my-math.jsonl"})
    assert "hub" not in source and "sha256" not in source and source["file"] == "my-math.jsonl"
    source, said = sets.MATH500.describe({"part": "dev"})
    assert (source["dev"], source["seed"], len(source["revision"])) == (100, 500, 40) and "D = 100" in said
