from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import pytest

from cask_eval.decide.selection import choose, scores
from cask_eval.protocol.keys import configs
from cask_eval.protocol.model import Protocol


def protocol(tune, **tuning):
    return Protocol.model_validate(
        {
            "study": "s",
            "hypothesis": "The candidate solves more problems.",
            "task": {"name": "chain", "dev": "d.json", "heldout": "h.json"},
            "models": [{"id": "embedded:a", "name": "a"}, {"id": "embedded:b", "name": "b"}],
            "generation": {"max_new_tokens": 8},
            "budgets": [16],
            "baseline": {"preset": "triattention"},
            "candidate": {"preset": "alpha", "tune": tune},
            "tuning": tuning,
            "test": {"procedure": "mcnemar_exact", "alpha": "0.05", "veto": {"alpha": "0.05"}},
            "branches": [{"name": "A", "otherwise": True, "decision": "none"}],
        }
    )


@dataclass
class R:
    cell: str
    config: str
    problem: str
    correct: bool = True
    phase: str = "dev"
    arm: str = "candidate"
    sample: int = 0

    @property
    def grade(self):
        return SimpleNamespace(correct=self.correct)


A, B = "a/b16", "b/b16"


def test_scores_count_each_trial_once_and_missing_as_wrong():
    p = protocol({"lambda": ["1", "2"]})
    records = [
        R(A, "lambda=1", "p0"), R(A, "lambda=1", "p0"),
        R(A, "lambda=1", "p1", correct=False), R(A, "lambda=1", "other"), R(A, "lambda=1", "p2", phase="heldout"),
        R(A, "lambda=2", "p1", arm="baseline"), R(A, "lambda=1", "p2", sample=1),
    ]  # fmt: skip
    assert scores(p, records, ["p0", "p1", "p2"])[A] == {"lambda=1": Fraction(1, 3), "lambda=2": Fraction(0)}


def table(a, b):
    names = ["lambda=1", "lambda=0.5", "lambda=10"]
    return {A: dict(zip(names, a, strict=True)), B: dict(zip(names, b, strict=True))}


@pytest.mark.parametrize(
    ("tuning", "a", "b", "expected"),
    [
        ({}, (1, 2, 3), (3, 2, 0), {A: "lambda=0.5", B: "lambda=0.5"}),  # all tie at 4, 4, 3: smallest
        ({"ties": "first"}, (1, 2, 3), (3, 2, 0), {A: "lambda=1", B: "lambda=1"}),
        ({"scope": "per_cell"}, (1, 2, 3), (3, 3, 0), {A: "lambda=10", B: "lambda=0.5"}),
        ({"scope": "per_cell"}, (0, 0, 0), (0, 0, 1), {A: "lambda=0.5", B: "lambda=10"}),
    ],
)
def test_choose(tuning, a, b, expected):
    p = protocol({"lambda": ["1", "0.5", "10"]}, **tuning)
    assert choose(p, table(map(Fraction, a), map(Fraction, b))) == expected


def test_words_tie_by_their_place():
    p = protocol({"mode": ["2", "fast"], "k": [7, 3]})
    row = dict.fromkeys((n for n, _ in configs(p.candidate)), Fraction(1))
    assert choose(p, {A: row, B: row}) == dict.fromkeys((A, B), "mode=2,k=3")


def test_an_untuned_candidate_has_a_configuration_of_its_own():
    # "" is the baseline's key in `DevRun.matched`
    assert [name for name, _ in configs(protocol({}).candidate)] == ["untuned"]
