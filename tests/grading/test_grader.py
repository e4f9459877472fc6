"""The grader as a whole: limits, threads, forks, process pools, memory, determinism."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from cask_eval.grading import ExtractionRule, Grader, Limits, grade

POSIX = pytest.mark.skipif(os.name != "posix", reason="limits on time and memory are POSIX's")


@pytest.fixture(scope="module")
def grader():
    with Grader(2) as found:
        yield found


def boxed(text: str) -> str:
    return rf"Therefore the answer is $\boxed{{{text}}}$."


# --- extraction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "rule", "text", "where"),
    [
        (r"a \boxed{1} b \boxed{2}", "boxed", "2", "boxed"),
        (r"\boxed{\boxed{5}}", "boxed", r"\boxed{5}", "boxed"),
        (r"\boxed{\frac{1}{2}}", "boxed", r"\frac{1}{2}", "boxed"),
        (r"\boxed{\{1,2\}}", "boxed", r"\{1,2\}", "boxed"),
        (r"\fbox{7}", "boxed", "7", "boxed"),
        (r"so \boxed 5$", "boxed", "5", "boxed"),
        (r"the answer is 3 and \boxed{4", "answer", None, "none"),
        (r"\boxed{3} wait \boxed{4", "boxed", "3", "boxed"),
        (r"escaped twice: \\boxed{\\frac{1}{2}}.", "boxed", r"\\frac{1}{2}", "boxed"),
        (r"a line \\\boxed{4}", "boxed", "4", "boxed"),
        (r"<think> \boxed{1} </think> \boxed{2}", "boxed", "2", "boxed"),
        (r"<think> \boxed{1} </think> so it is 2", "boxed", None, "none"),
        ("the answer is 5", "boxed", None, "none"),
        ("the answer is 5", "final", "5", "anchor"),
        ("steps\n#### 1,234", "hash", "1,234", "hash"),
        ("steps\n#### 18", "final", "18", "hash"),
        (r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", "final", r"\frac{1}{2}", "anchor"),
        ("**Answer:** 42\nmore", "final", "42", "anchor"),
        ("Final Answer: The largest $n$ is 34.", "final", "34", "anchor"),
        ("So the answer is 5, which is the largest.", "final", "5", "anchor"),
        ("The answer is $18.", "final", "$18", "anchor"),
        (r"\frac{1}{2}", "answer", r"\frac{1}{2}", "whole"),
        ("We find that $x < 3$.", "answer", "x < 3", "formula"),
        (r"\boxed{1} and \boxed{2}", "answer", "1, 2", "boxed"),
        (r"\boxed{1} and \boxed{2}", "boxed", "2", "boxed"),
        ("it has 3 parts and 12,345.6 more", "last-number", "12,345.6", "lastnum"),
        ("it has 3 parts and 4 more", "final", None, "none"),
        ("", "answer", None, "none"),
    ],
)
def test_extraction(output, rule, text, where):
    from cask_eval.grading import extract

    found = extract(output, rule)
    assert (found.text, found.where) == (text, where)


def test_a_number_in_a_text_that_was_cut_off_earns_nothing_unless_asked_for(grader):
    cut = "The problem has 3 parts. I cannot finish"
    for rule in ExtractionRule:
        assert grader.grade("3", cut, rule=rule).correct is (rule == ExtractionRule.LAST_NUMBER)


# --- hostile outputs -----------------------------------------------------------------------------------------------

HOSTILE = {
    "tower": boxed("10^{10^{10}}"), "tower of nines": boxed("9^{9^{9^9}}"), "factorial": boxed("10000000!"),
    "factorial of a power": boxed("(10^{10})!"), "braces": "{" * 100_000, "boxes": r"\boxed{" * 20_000,
    "closed braces": r"\boxed{" + "{" * 50_000 + "}" * 50_000 + "}", "nested boxes": r"\boxed{" * 500 + "4" + "}" * 500,
    "parentheses": boxed("(" * 1_500 + "4" + ")" * 1_500), "inline maths": r"\( " * 30_000, "dollars": "$ " * 50_000,
    "python": boxed("__import__('os').system('echo 5')"), "input": boxed(r"\input{/etc/passwd}"),
    "write": boxed(r"\immediate\write18{ls}"), "matrix": boxed(r"\begin{pmatrix}" + "1 & " * 900 + r"\end{pmatrix}"),
    "huge matrix": r"\boxed{\begin{pmatrix}" + (r"1 & 2 \\" * 9_000) + r"\end{pmatrix}}", "digits": boxed("7" * 3_000),
    "long output": "7" * 1_000_000, "nan": boxed("NaN"), "infinity": boxed(r"\infty"), "empty": boxed(""), "none": "",
    "spaces": boxed("   "), "null": boxed("\x00"), "surrogate": boxed("\ud800"), "zero": boxed(r"\frac{1}{0}"),
    "circled": boxed("⑤"), "binomial": boxed(r"\binom{10^9}{5 \cdot 10^8}"), "binomial ": boxed(r"\binom{999999999}{499}"),
    "list": boxed(",".join(map(str, range(900)))), "chain": boxed("=".join("x" * 300)),
    "sum": boxed(r"\sum_{n=1}^{100000} \sqrt{n}"),
    "exponents": boxed("2^" * 200 + "2"), "roots": boxed(r"\sqrt{" * 300 + "2" + "}" * 300),
    "signs": boxed("-" * 900 + "7"),
    "fractions": boxed(r"\frac{1}{" * 300 + "2" + "}" * 300), "sci": boxed("1e99"), "mod": boxed(r"10^{99999} \bmod 7"),
    "json": boxed('{"do": "decide"}'), "lines": boxed("\n" * 500), "two": r"\boxed{5} or \boxed{6}",
}  # fmt: skip


@pytest.mark.parametrize("output", HOSTILE.values(), ids=HOSTILE)
def test_hostile_outputs_end_soon_and_are_wrong(grader, output):
    began = time.perf_counter()
    verdict = grader.grade("5", output)
    assert not verdict.correct
    assert time.perf_counter() - began < 15
    assert grader.grade("5", boxed("5")).correct


def test_what_passes_its_limit_is_a_failure_and_the_next_answer_is_graded():
    slow = boxed(r"\int_0^\infty \frac{\sin(x^{x})}{x^{5}+\log x+1} dx")
    with Grader(1, Limits(cpu=0.3, wall=30)) as grader:
        verdict = grader.grade("5", slow)
        if os.name == "posix":
            assert (verdict.correct, verdict.failed, verdict.status) == (False, True, "failed")
            assert verdict.reason == "grader: time"
        assert grader.grade("5", boxed("5")).correct


def test_a_deadline_holds_whatever_the_worker_does():
    with Grader(1, Limits(cpu=100, wall=0.01)) as grader:
        verdict = grader.grade("5", boxed("7"))
        assert verdict.failed and verdict.reason == "grader: deadline"


@POSIX
def test_memory_is_limited():
    # The least memory in which a worker starts: the exact paths fit into it, computer algebra does not.
    for size in (40, 60, 90, 130, 200, 300):
        with Grader(1, Limits(memory=size << 20)) as grader:
            if not grader.grade("5", boxed("5.0")).correct:
                continue
            verdict = grader.grade(r"\frac12", boxed(r"\int_0^1 x\,dx"))
            assert verdict.failed and not verdict.correct
            assert grader.grade("5", boxed("5.00")).correct
            return
    pytest.fail("no worker starts in 300 MiB")


@POSIX
def test_a_worker_that_dies_is_replaced():
    with Grader(1) as grader:
        assert grader.grade("5", boxed("5.0")).correct
        worker = grader._pool._idle.queue[0]
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        assert grader.grade("5", boxed("5.00")).correct


def test_a_worker_is_replaced_after_its_share():
    with Grader(1, Limits(requests=2)) as grader:
        pids = set()
        for n in range(5):
            grader.grade("5", boxed(f"{n}"))
            pids.add(grader._pool._idle.queue[0].process.pid)
        assert len(pids) == 3


def test_the_workers_go_when_the_grader_is_closed():
    grader = Grader(1)
    grader.grade("5", boxed("5.0"))
    process = grader._pool._idle.queue[0].process
    grader.close()
    assert process.poll() is not None
    with pytest.raises(ValueError, match="closed"):
        grader.grade("5", boxed("5.000"))


@POSIX
def test_the_workers_go_when_their_parent_is_killed():
    code = (
        "import os, sys, time; from cask_eval.grading import Grader; g = Grader(1); g.grade('5', r'\\boxed{6}');"
        "print(g._pool._idle.queue[0].process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if _state(pid) in "ZX":
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def _state(pid: int) -> str:
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


# --- threads and processes -----------------------------------------------------------------------------------------


def _one(n: int) -> bool:
    return grade(str(n), boxed(f"{n}.0")).correct and not grade(str(n), boxed(f"{n + 1}")).correct


def test_threads_may_share_a_grader(grader):
    before = signal.getsignal(getattr(signal, "SIGALRM", signal.SIGINT))
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(_one, range(100)))
    integral = [(r"\frac12", boxed(r"\int_0^1 x\,dx")), ("3", boxed(r"\sum_{n=1}^{2} n"))]
    assert [v.correct for v in grader.grade_many(integral * 3)] == [True] * 6
    assert signal.getsignal(getattr(signal, "SIGALRM", signal.SIGINT)) is before
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_of_any_pool_may_grade(method):
    assert _one(1)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert all(pool.map(_one, range(10)))
    assert _one(2)


def test_a_daemonic_process_may_grade():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_one, range(3)) == [True] * 3


def test_a_grader_can_be_pickled():
    with pickle.loads(pickle.dumps(Grader(1, Limits(cpu=3)))) as again:
        assert (again.workers, again.limits.cpu) == (1, 3)
        assert again.grade("5", boxed("5.0")).correct


# --- results -------------------------------------------------------------------------------------------------------


def test_the_same_question_is_asked_once_and_answered_alike(grader):
    first = grader.grade("1/3", boxed(r"\frac{2}{6}"))
    asked = len(grader._known)
    again = grader.grade("1/3", "other words around " + boxed(r"\frac{2}{6}"))
    assert first == again and len(grader._known) == asked
    with Grader(1) as other:
        assert other.grade("1/3", boxed(r"\frac{2}{6}")) == first


def test_the_memory_of_a_grader_is_bounded():
    with Grader(1, remember=3) as grader:
        for n in range(10):
            grader.grade("5", boxed(str(n)))
        assert len(grader._known) == 3


def test_where_math_verify_alone_decides_otherwise_is_said(grader):
    verdict = grader.grade("5", r"\boxed{500\%}", compare=True)
    assert (verdict.correct, verdict.plain, verdict.differs) == (False, True, True)
    verdict = grader.grade("3", "The problem has 3 parts. I cannot finish", compare=True)
    assert (verdict.correct, verdict.plain, verdict.differs) == (False, True, True)
    verdict = grader.grade("5", boxed("5"), compare=True)
    assert (verdict.correct, verdict.plain, verdict.differs) == (True, True, False)
    assert grader.grade("5", boxed("5")).plain is None


def test_what_a_record_needs_is_there(grader):
    verdict = grader.grade(r"\frac{1}{2}", boxed("0.5"))
    assert (verdict.how, verdict.extracted, verdict.status) == ("boxed/number", "0.5", "graded")
    assert grader.grade("5", "nothing").how == "none/none"
    assert grader.same("1/2", "0.5") and not grader.same("1/2", "0.6")


def test_an_unknown_rule_is_refused(grader):
    with pytest.raises(ValueError, match="no-such"):
        grader.grade("5", "5", rule="no-such")


def test_an_empty_reference_is_a_failure_of_the_grader(grader):
    assert grader.grade("", boxed("5")).failed


def test_importing_the_grader_loads_no_computer_algebra():
    code = "import sys, cask_eval.grading; print({'sympy', 'mpmath', 'torch', 'math_verify'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
