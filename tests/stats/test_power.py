from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.mcnemar import mcnemar_exact
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.power import connor_mde, connor_sample_size, critical_losses, exact_power, expected_discordant, mde


def enumerated_power(n, q, delta, alpha, alternative):
    """Sum over every (wins, losses) of its trinomial probability, where the test rejects for the candidate."""
    won, lost, total = (q + delta) / 2, (q - delta) / 2, 0.0
    for w in range(n + 1):
        for l in range(n + 1 - w):
            if w > l and mcnemar_exact(Pairs.binary(n, w, l), alternative) <= alpha:
                total += comb(n, w) * comb(n - w, l) * won**w * lost**l * (1 - q) ** (n - w - l)
    return total


@pytest.mark.parametrize("n, points", [(100, 14.9), (250, 9.6), (400, 7.6), (500, 6.8)])
def test_detectable_difference_of_four_study_sizes(n, points):
    # q = .2, α = .05 shared by four cells. The figures are rounded up to a tenth of a point.
    found = 100 * mde(n, 0.2, 0.0125)
    assert points - 0.1 < found <= points
    assert connor_mde(n, 0.2, 0.0125) * 100 == pytest.approx(found, abs=0.25)


def test_five_points_in_250_problems_are_seldom_seen():
    assert exact_power(250, 0.2, 0.05, 0.0125) == pytest.approx(0.19, abs=0.005)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_power_equals_full_enumeration(alternative):
    want = enumerated_power(30, 0.4, 0.25, 0.05, alternative)
    assert exact_power(30, 0.4, 0.25, 0.05, alternative) == pytest.approx(want, rel=1e-9)


def test_power_against_the_candidate_is_the_mirror():
    assert exact_power(80, 0.3, -0.1, 0.05, "less") == exact_power(80, 0.3, 0.1, 0.05, "greater")
    assert exact_power(80, 0.3, -0.1, 0.05) == exact_power(80, 0.3, 0.1, 0.05)
    assert exact_power(80, 0.3, -0.1, 0.05, "greater") < 0.01


def test_connor_by_hand():
    # z.975 = 1.959964, z.8 = .841621, q = .3, δ = .1: (1.959964·√.3 + .841621·√.29)²/.01 = 233.0…
    assert connor_sample_size(0.1, 0.3, 0.05) == 234
    assert connor_sample_size(-0.1, 0.3, 0.05) == 234
    assert connor_sample_size(0.1, 0.3, 0.025, alternative="greater") == 234


@given(st.integers(20, 3000), st.floats(0.05, 0.9), st.sampled_from([0.05, 0.0125]), st.sampled_from([0.8, 0.9]))
@settings(max_examples=80, deadline=None)
def test_sample_size_and_detectable_difference_invert_each_other(n, q, alpha, power):
    delta = connor_mde(n, q, alpha, power)
    if delta is not None:
        assert connor_sample_size(delta, q, alpha, power) in (n, n + 1)  # ceil of n within rounding


@given(st.integers(10, 200), st.floats(0.1, 0.9))
@settings(max_examples=30, deadline=None)
def test_mde_is_where_power_is_reached(n, q):
    delta = mde(n, q, 0.05)
    if delta is None:
        assert exact_power(n, q, q, 0.05) < 0.8
    else:
        assert exact_power(n, q, delta, 0.05) >= 0.8 > exact_power(n, q, delta - 2e-6, 0.05)


def test_fewer_than_eight_discordant_pairs_never_reach_the_bonferroni_level():
    critical = critical_losses(20, 0.0125 / 2)
    assert (critical[:8] == -1).all()
    assert critical[8] == 0
    for d in range(21):
        below = [k for k in range(d + 1) if sum(comb(d, i) for i in range(k + 1)) / 2**d <= 0.00625]
        assert critical[d] == max(below, default=-1)


def test_expected_discordant():
    assert expected_discordant(250, 0.2) == 50


def test_impossible_designs_are_refused():
    assert mde(5, 0.2, 0.0125) is None
    assert connor_mde(5, 0.2, 0.0125) is None
    for call in (
        lambda: connor_sample_size(0.3, 0.2, 0.05),
        lambda: connor_sample_size(0, 0.2, 0.05),
        lambda: exact_power(10, 0.2, 0.3, 0.05),
        lambda: mde(0, 0.2, 0.05),
        lambda: mde(10, 0, 0.05),
        lambda: mde(10, 0.2, 1.0),
        lambda: mde(10, 0.2, 0.05, power=1.0),
    ):
        with pytest.raises(ValueError):
            call()
