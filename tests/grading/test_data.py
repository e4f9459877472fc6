"""Real references: every one answers itself, and pairs derived from them by rule are told apart.

The data sets are not part of the project; the environment variable CASK_EVAL_DATA names the folder that holds
math500/test.jsonl, gsm8k/test.jsonl, aime24/*.jsonl and aime25/*.jsonl.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from derived import pairs

from cask_eval.grading import Grader

FOLDER = os.environ.get("CASK_EVAL_DATA")
SENTENCES = (
    "Adding the cases, we conclude that the answer is $\\boxed{{{}}}$.",
    "<think>Maybe \\boxed{{17}}? No.</think>\n\n**Final Answer**\n\\[\n\\boxed{{{}}}\n\\]",
    "Since $f(x) = {{x \\over 2}}$ we get\n$$x = \\boxed{{ {} }}.$$\nThis can be checked by hand.",
)


def rows(pattern: str) -> list[dict]:
    if not FOLDER:
        pytest.skip("CASK_EVAL_DATA names no folder with the data sets")
    files = sorted(Path(FOLDER).glob(pattern))
    if not files:
        pytest.skip(f"there is no {pattern} in the folder that CASK_EVAL_DATA names")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [json.loads(line) for line in lines]


def references(name: str) -> list[str]:
    if name == "math500":
        return [row["answer"] for row in rows("math500/test.jsonl")]
    if name == "gsm8k":
        return [row["answer"].rpartition("####")[2].strip() for row in rows("gsm8k/test.jsonl")]
    return [str(row.get("answer", row.get("expected_answer"))) for row in rows("aime2[45]/*.jsonl")]


@pytest.fixture(scope="module")
def grader():
    with Grader(2) as found:
        yield found


@pytest.mark.parametrize(("name", "count"), [("math500", 500), ("gsm8k", 1319), ("aime", 60)])
def test_every_reference_answers_itself(grader, name, count):
    golds = references(name)
    assert len(golds) == count
    whole = name == "aime"
    assert sum(v.correct for v in grader.grade_many([(g, g) for g in golds], rule="answer", integers=whole)) == count
    for sentence in SENTENCES:
        made = [(g, sentence.format(g)) for g in golds]
        assert sum(v.correct for v in grader.grade_many(made, integers=whole)) == count


def test_the_reference_solutions_answer_their_problems(grader):
    made = [(row["answer"], row["solution"]) for row in rows("math500/test.jsonl")]
    assert sum(v.correct for v in grader.grade_many(made)) == 500
    texts = [row["answer"] for row in rows("gsm8k/test.jsonl")]
    assert sum(v.correct for v in grader.grade_many([(t, t) for t in texts], rule="hash")) == 1319


@pytest.mark.parametrize("name", ["math500", "gsm8k", "aime"])
def test_derived_pairs(grader, name):
    made = pairs(references(name)[:500])
    verdicts = grader.grade_many([(gold, f"Hence it is $\\boxed{{{answer}}}$.") for _, gold, answer, _ in made])
    wrong = [(pair, v.how) for pair, v in zip(made, verdicts) if v.correct != pair[3]]
    assert len(wrong) * 3000 <= len(made), wrong[:20]
    assert not any(v.failed for v in verdicts)


def test_derived_pairs_of_written_examples(grader):
    """The same where the data sets are not at hand."""
    golds = [
        "17", "-4", "1250", "10080", r"\frac{3}{8}", r"-\frac{7}{12}", "0.125", r"\frac{25}{4}", "90^\\circ",
        r"\text{north}", r"\text{(D)}", "132_5", r"5\sqrt{6}", "(2, -7)", r"\left(\frac{1}{2}, 4\right)", "3, -9",
        "(0,6]",
        "4x^2 + 3x - 1", r"\begin{pmatrix} 2 \\ -9 \\ 4 \end{pmatrix}", "y = 4x - 5", r"(-\infty, 5]",
    ]  # fmt: skip
    made = pairs(golds)
    verdicts = grader.grade_many([(gold, f"Hence it is $\\boxed{{{answer}}}$.") for _, gold, answer, _ in made])
    assert len(made) > 300
    assert not [(pair, v.how) for pair, v in zip(made, verdicts) if v.correct != pair[3]]
