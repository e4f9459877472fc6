from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_study import choice
from small_study import protocol as small

from cask_eval.decide.selection import choose, freeze, gains, rule, scores, select, survivors
from cask_eval.protocol.keys import configs
from cask_eval.protocol.model import Protocol


def protocol(*tunes, screening=None, **tuning):
    """Candidates named candidate, other, third, each with what it tunes."""
    names = ["candidate", "other", "third"]
    document = small(models=("a", "b")).document()
    document["candidates"] = [
        {"name": name, "preset": "alpha", "tune": tune} for name, tune in zip(names, tunes, strict=False)
    ]
    return Protocol.model_validate({**document, "tuning": tuning, "screening": screening})


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
    p = protocol({"lambda": ["1", "2"]}, {})
    records = [
        R(A, "lambda=1", "p0"), R(A, "lambda=1", "p0"),
        R(A, "lambda=1", "p1", correct=False), R(A, "lambda=1", "other"), R(A, "lambda=1", "p2", phase="heldout"),
        R(A, "lambda=2", "p1", arm="baseline"), R(A, "lambda=1", "p2", sample=1),
        R(A, "untuned", "p1", arm="other"), R(A, "", "p1", arm="baseline"), R(A, "", "p2", arm="baseline"),
        R(A, "untuned", "p1", arm="unregistered"),
    ]  # fmt: skip
    found = scores(p, records, ["p0", "p1", "p2"])
    assert found[A] == {
        "baseline": {"": Fraction(2, 3)},
        "candidate": {"lambda=1": Fraction(1, 3), "lambda=2": Fraction(0)},
        "other": {"untuned": Fraction(1, 3)},
    }
    assert {s for row in found[B].values() for s in row.values()} == {0}


def table(a, b):
    names = ["lambda=1", "lambda=0.5", "lambda=10"]
    return {
        cell: {"baseline": {"": Fraction(1, 2)}, "candidate": dict(zip(names, row, strict=True))}
        for cell, row in ((A, a), (B, b))
    }


@pytest.mark.parametrize(
    ("tuning", "a", "b", "expected"),
    [
        ({}, (1, 2, 3), (3, 2, 0), ("lambda=0.5", "lambda=0.5")),  # all tie at 4, 4, 3: smallest
        ({"ties": "first"}, (1, 2, 3), (3, 2, 0), ("lambda=1", "lambda=1")),
        ({"scope": "per_cell"}, (1, 2, 3), (3, 3, 0), ("lambda=10", "lambda=0.5")),
        ({"scope": "per_cell"}, (0, 0, 0), (0, 0, 1), ("lambda=0.5", "lambda=10")),
    ],
)
def test_choose(tuning, a, b, expected):
    p = protocol({"lambda": ["1", "0.5", "10"]}, **tuning)
    found = choose(p, table(map(Fraction, a), map(Fraction, b)))
    assert found == {A: {"candidate": expected[0]}, B: {"candidate": expected[1]}}


def test_words_tie_by_their_place():
    p = protocol({"mode": ["2", "fast"], "k": [7, 3]})
    row = {"candidate": dict.fromkeys((n for n, _ in configs(p.candidates[0])), Fraction(1))}
    assert choose(p, {A: row, B: row}) == {cell: {"candidate": "mode=2,k=3"} for cell in (A, B)}


def test_an_untuned_candidate_has_a_configuration_of_its_own():
    # "" is the baseline's
    assert [name for name, _ in configs(protocol({}).candidates[0])] == ["untuned"]


def test_candidates_choose_by_themselves():
    p = protocol({"lambda": ["1", "2"]}, {"lambda": ["1", "2"]})
    one, two = {"lambda=1": Fraction(1), "lambda=2": Fraction(0)}, {"lambda=1": Fraction(0), "lambda=2": Fraction(1)}
    row = {"baseline": {"": Fraction(0)}, "candidate": one, "other": two}
    assert choose(p, {A: row, B: row})[B] == {"candidate": "lambda=1", "other": "lambda=2"}


def test_a_gain_is_the_mean_over_the_cells_of_what_was_chosen():
    p = protocol({"lambda": ["1", "2"]}, {}, scope="per_cell")
    found = {
        A: {"baseline": {"": Fraction(3, 10)}, "candidate": {"lambda=1": Fraction(5, 10), "lambda=2": Fraction(4, 10)},
            "other": {"untuned": Fraction(2, 10)}},
        B: {"baseline": {"": Fraction(7, 10)}, "candidate": {"lambda=1": Fraction(1, 10), "lambda=2": Fraction(6, 10)},
            "other": {"untuned": Fraction(8, 10)}},
    }  # fmt: skip
    # +.2 and −.1; −.1 and +.1
    assert gains(p, found, choose(p, found)) == {"candidate": Fraction(1, 20), "other": 0}


@pytest.mark.parametrize(
    ("screening", "gained", "left"),
    [
        (None, (-1, -1, -1), ["candidate", "other", "third"]),
        ({"survivors": 1}, (0, 1, 1), ["other"]),  # a tie goes to the one listed first
        ({"survivors": 2}, (1, 2, 3), ["other", "third"]),
        ({"survivors": 2}, (3, 1, 2), ["candidate", "third"]),  # in the protocol's order, not by gain
        ({"survivors": 3}, (0, -1, 1), ["candidate", "third"]),  # no gain is no loss
        ({"survivors": 3, "min_gain": "0.2"}, (2, 1, 3), ["candidate", "third"]),
        ({"survivors": 2, "min_gain": "-0.1"}, (-1, -2, -3), ["candidate"]),
        ({"survivors": 2}, (-1, -2, -3), []),
    ],
)
def test_survivors(screening, gained, left):
    p = protocol({}, {}, {}, screening=screening)
    names = [c.name for c in p.candidates]
    assert survivors(p, {name: Fraction(g, 10) for name, g in zip(names, gained)}) == left


@given(st.lists(st.integers(-2, 2), min_size=3, max_size=3), st.integers(1, 3), st.integers(-2, 2))
def test_survivors_are_those_that_few_beat(gained, k, least):
    p = protocol({}, {}, {}, screening={"survivors": k, "min_gain": f"{least / 10:.1f}"})
    names = [c.name for c in p.candidates]
    found = survivors(p, {name: Fraction(g, 10) for name, g in zip(names, gained)})
    for i, name in enumerate(names):
        ahead = sum(g > gained[i] or (g == gained[i] and j < i) for j, g in enumerate(gained))
        assert (name in found) == (gained[i] >= least and ahead < k)
    assert found == [name for name in names if name in found]


def test_freeze_keeps_the_survivors_as_they_ran():
    p = protocol({"lambda": ["1", "2"]}, {}, screening={"survivors": 1})
    records = [R(cell, "lambda=2", "p0") for cell in (A, B)] + [R(A, "untuned", "p0", arm="other")]
    found = select(p, records, ["p0", "p1"])
    assert found.gains == {"candidate": Fraction(1, 2), "other": Fraction(1, 4)}
    budgets = iter(range(100, 200))
    matched = {
        cell: {arm: {name: choice("x", next(budgets)) for name in row} for arm, row in rows.items()}
        for cell, rows in found.scores.items()
    }
    controls = {cell: {"random": choice("random_pp", 1)} for cell in (A, B)}
    event = freeze(p, found, matched, controls)
    assert (
        event.rule
        == rule(p)
        == ("max_mean_accuracy, scope all_cells, ties smallest; best_dev_gain, survivors 1, min_gain 0")
    )
    assert (event.survivors, event.gains) == (["candidate"], {"candidate": "1/2", "other": "1/4"})
    assert event.scores[A] == {
        "baseline": {"": "0/1"}, "candidate": {"lambda=1": "0/1", "lambda=2": "1/2"}, "other": {"untuned": "1/2"}
    }  # fmt: skip
    assert event.chosen[B] == {"candidate": "lambda=2", "other": "untuned"}
    for cell in (A, B):
        assert event.arms[cell] == {
            "baseline": matched[cell]["baseline"][""],
            "candidate": matched[cell]["candidate"]["lambda=2"],
            "random": controls[cell]["random"],
        }


def test_the_rule_without_screening():
    assert rule(protocol({}, ties="first")) == "max_mean_accuracy, scope all_cells, ties first"
