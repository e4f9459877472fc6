"""Adjustment over a whole table: which rows share a sign, and what an empty row does."""

from fractions import Fraction

import pytest

from cask_eval.stats.comparison import adjust, compare
from cask_eval.stats.max_t import max_t
from cask_eval.stats.multiplicity import bonferroni, holm
from cask_eval.stats.table import Metric, Paired

RIGHT = Metric("right", Fraction(1), True)
LEVEL = Fraction("0.95")


def row(differences: dict[str, int]):
    """A row of right answers: problem → difference."""
    keys = tuple((name,) for name in differences)
    baseline = tuple(Fraction(d < 0) for d in differences.values())
    candidate = tuple(Fraction(d > 0) for d in differences.values())
    return compare(Paired((), "b", RIGHT, keys, baseline, candidate, 0, 0), LEVEL)


def test_the_same_key_is_the_same_problem_in_every_row():
    a, b = row(dict.fromkeys("pqrstu", 1)), row(dict.fromkeys("utsrqp", 1))
    assert adjust([a, b]).max_t == [2 / 64] * 2
    c = row(dict.fromkeys("ghijkl", 1))
    assert adjust([a, c]).max_t == pytest.approx([1 - (1 - 2 / 64) ** 2] * 2)


def test_rows_with_different_problems_line_up():
    a, b = row({"p": 1, "q": 1, "r": -1, "s": 1}), row({"r": 1, "s": 1, "t": 1, "u": 1, "v": 1})
    want = max_t([[1, 1, -1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    assert adjust([a, b]).max_t == want.step_down


def test_every_correction_is_over_all_rows():
    rows = [row(dict.fromkeys("abcdefgh"[:k], 1)) for k in (4, 6, 8)] + [row({})]
    p = [r.p.get("sign_flip") for r in rows]
    found = adjust(rows)
    assert (found.bonferroni, found.holm) == (bonferroni(p), holm(p))
    assert p[3] is None and found.bonferroni[3] == found.holm[3] == found.max_t[3] == 1
    for own, joint in zip(p[:3], found.max_t):
        assert own <= joint


def test_an_empty_row_has_no_numbers():
    empty = row({})
    assert (empty.n, empty.difference, empty.p, empty.intervals) == (0, None, {}, {})


def test_one_pair_off_the_lattice_has_no_t():
    one = compare(
        Paired((), "b", Metric("x", None, False), (("p",),), (Fraction("0.123"),), (Fraction("0.5"),), 0, 0), LEVEL
    )
    assert set(one.p) == {"sign_flip", "paired_bootstrap"} and one.p["sign_flip"] == 1
