"""Minimum usable budgets and crossings against their definitions, written out."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.frontier import at_one_budget, crossings, minimum_budget

grids = st.integers(1, 4).flatmap(
    lambda rows: st.integers(2, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(-4, 12), min_size=n, max_size=n), min_size=rows, max_size=rows)
    )
)


@settings(deadline=None)
@given(grids, st.integers(1, 8))
def test_the_estimate_is_the_smallest_budget_that_no_larger_one_exceeds(rows, epsilon):
    losses = {10 * (i + 1): row for i, row in enumerate(rows)}
    usable = [b for b in losses if all(sum(losses[c]) <= epsilon * len(losses[c]) for c in losses if c >= b)]
    found = minimum_budget(losses, epsilon, replicates=39)
    assert found.estimate == min(usable, default=None)


def test_the_interval_is_that_of_all_resamples():
    """With three problems all 27 resamples can be written down; many draws come near their quantiles."""
    losses = {8: [3, 0, 9], 16: [2, 0, 3], 32: [0, 0, 0]}
    firsts = []
    for draw in product(range(3), repeat=3):
        means = {b: sum(row[i] for i in draw) / 3 for b, row in losses.items()}
        firsts.append(min((b for b in means if all(means[c] <= 1.5 for c in means if c >= b)), default=99))
    share = {b: firsts.count(b) / 27 for b in (8, 16, 32)}
    assert share[8] > 0.05 and share[32] > 0.05
    found = minimum_budget(losses, 1.5, alpha=Fraction(1, 10), replicates=9999)
    assert (found.low, found.high) == (8, 32)
    assert minimum_budget({8: [0, 0, 0]}, 1, replicates=99).high == 8


def test_a_grid_that_is_nowhere_good_enough():
    found = minimum_budget({8: [5, 6, 7], 16: [4, 5, 6]}, 1, replicates=199)
    assert (found.estimate, found.low, found.high, found.shown) == (None, None, None, None)


def test_shown_stops_at_the_first_budget_that_fails():
    rng = np.random.default_rng(0)
    quiet, loud = rng.normal(0, 0.1, 30), rng.normal(0, 9, 30)
    found = minimum_budget({8: quiet, 16: loud, 32: quiet}, 1, replicates=99)
    assert found.shown == 32 and found.p[8] < 0.05 < found.p[16]


def test_p_is_scipy_s():
    from scipy.stats import ttest_1samp

    row = np.random.default_rng(1).normal(0.2, 1, 25)
    found = minimum_budget({4: row}, 0.5, replicates=99)
    assert found.p[4] == pytest.approx(ttest_1samp(row, 0.5, alternative="less").pvalue)


@pytest.mark.parametrize(
    "losses, epsilon, message",
    [
        ({}, 1, "no budget"),
        ({8: [1, 2], 9: [1]}, 1, "must be the same ones"),
        ({8: [1]}, 1, "needs two"),
        ({8: [1, float("nan")]}, 1, "NaN"),
        ({8: [1, 2]}, 0, "epsilon is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(losses, epsilon, message):
    with pytest.raises(ValueError, match=message):
        minimum_budget(losses, epsilon, replicates=99)


def test_every_pair_is_examined_and_counts():
    values = {(m, b): [Fraction(m == "a") + Fraction(b, 100) + i for i in range(6)] for m in "ab" for b in (8, 16, 32)}
    found = crossings(values, replicates=999)
    assert {(c.first, c.one, c.second, c.other) for c in found} == {
        (x, b1, y, b2) for x, y in ("ab", "ba") for b1, b2 in ((8, 16), (8, 32), (16, 32))
    }
    for c in found:
        # All six differences are alike, so p is 1/64 or 1.
        assert c.exact and c.p == (1 / 64 if c.first == "a" else 1)
        assert c.wins == 6 * (c.first == "a") and c.difference == pytest.approx(c.low) == pytest.approx(c.high)
        assert c.adjusted == (6 / 64 if c.first == "a" else 1)


def test_contrasts_at_one_budget_are_two_sided():
    values = {(m, b): [Fraction(m == "a") + i for i in range(6)] for b in (8, 16) for m in "ab"}
    found = at_one_budget(values, replicates=999)
    assert [(c.first, c.one, c.second, c.other, c.p, c.adjusted) for c in found] == [
        ("b", 8, "a", 8, 1 / 32, 1 / 16), ("b", 16, "a", 16, 1 / 32, 1 / 16)
    ]  # fmt: skip
    assert all(c.difference == -1 and c.losses == 6 for c in found)


def test_pairs_of_other_problems_are_refused():
    with pytest.raises(ValueError, match="a@8 has 2 problems and b@16 3"):
        crossings({("a", 8): [1, 2], ("b", 16): [1, 2, 3]}, replicates=99)
