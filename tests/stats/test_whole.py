"""Sums that are exact before they are rounded: ties stay ties."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.whole import drawn_sums, signed_sums, total, whole

decimals = st.decimals(-100, 100, places=8)
reals = st.one_of(st.floats(-1e6, 1e6), decimals, st.integers(-50, 50), st.fractions(-5, 5, max_denominator=1000))


def test_decimals_become_the_smallest_integers():
    integers, unit = whole([Decimal("0.3"), Decimal("-0.25"), 0, Fraction(1, 2)])
    assert (integers.tolist(), unit) == ([6, -5, 0, 10], Fraction(1, 20))
    assert whole([0, 0])[0].tolist() == [0, 0]


@given(st.lists(reals, min_size=1, max_size=12))
@settings(deadline=None)
def test_integers_times_the_unit_are_the_values(values):
    integers, unit = whole(values)
    largest = max(abs(Fraction(v)) for v in values)
    assert np.abs(integers).max() < 2**62
    for v, i in zip(values, integers.tolist()):
        assert abs(i * unit - Fraction(v)) <= largest / 2**61


@given(st.lists(decimals, min_size=1, max_size=10), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_sum_is_the_exact_one_rounded_once(values, random):
    integers, _ = whole(values)
    signs = [[random.choice((1, -1)) for _ in values] for _ in range(5)]
    drawn = [[random.randrange(len(values)) for _ in values] for _ in range(5)]
    exact = [int(v) for v in integers]
    assert total(integers) == float(sum(exact))
    found = signed_sums(np.array(signs, dtype=float), integers[None])[:, 0]
    assert found.tolist() == [float(sum(s * v for s, v in zip(row, exact))) for row in signs]
    assert drawn_sums(np.array(drawn), integers).tolist() == [float(sum(exact[i] for i in row)) for row in drawn]


def test_a_tie_that_floats_break_is_a_tie():
    values = [Decimal("0.1"), Decimal("0.2"), Decimal("-0.3")]
    assert 0.1 + 0.2 - 0.3 != 0
    assert total(whole(values)[0]) == 0


@pytest.mark.parametrize("bad", [[1.0, float("nan")], [float("inf")], [Decimal("NaN")], []])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="difference"):
        whole(bad)
