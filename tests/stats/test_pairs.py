from fractions import Fraction
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.stats.pairs import Pairs


def test_counts_land_on_the_lattice():
    pairs = Pairs.from_differences([-2, 0, 0, 1, 2, 2], samples=2)
    assert pairs.counts == (1, 0, 2, 1, 2)
    assert (pairs.n, pairs.wins, pairs.losses, pairs.ties) == (6, 3, 1, 2)
    assert pairs.difference == Fraction(3, 12)


def test_standard_error_is_the_population_formula():
    # d = 1, 1, 0, −1 over K = 1: mean ¼, squares sum to 3, so the variance is 3/4 − 1/16 = 11/16.
    assert Pairs.binary(4, 2, 1).standard_error == pytest.approx(sqrt(11 / 16 / 4))


def test_sums_that_floats_get_wrong_are_exactly_zero():
    # 0.1 + 0.2 − 0.3 is 5.6e-17 in floating point.
    assert Pairs.from_differences([1, 2, -3], samples=10).difference == 0


@pytest.mark.parametrize(
    "samples, counts", [(1, (0, 0, 0)), (1, (1, -1, 1)), (2, (1, 1, 1)), (0, (1,))], ids=["none", "sign", "length", "K"]
)
def test_impossible_counts_are_refused(samples, counts):
    with pytest.raises(ValueError):
        Pairs(samples, counts)


@pytest.mark.parametrize("difference", [-3, 3])
def test_differences_off_the_lattice_are_refused(difference):
    with pytest.raises(ValueError, match="outside"):
        Pairs.from_differences([0, difference], samples=2)


@given(st.integers(1, 5).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(-k, k), min_size=1))))
def test_exchanging_the_arms_mirrors_everything(case):
    samples, differences = case
    pairs = Pairs.from_differences(differences, samples)
    other = pairs.swap()
    assert other == Pairs.from_differences([-d for d in differences], samples)
    assert (other.wins, other.losses, other.difference) == (pairs.losses, pairs.wins, -pairs.difference)
    assert other.standard_error == pairs.standard_error
