"""Tango's score test and interval against published examples, a search over likelihoods, and its own definition."""

import json
from math import log, sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.pairs import Pairs
from cask_eval.stats.tango import non_inferiority, tango_interval, tango_test, tango_z

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
INTERVALS = [v for v in VECTORS["binary"] if "tango95" in v]
Z95 = NormalDist().inv_cdf(0.975)

binary = st.integers(1, 120).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda w: st.builds(Pairs.binary, st.just(n), st.just(w), st.integers(0, n - w))
    )
)
nulls = st.floats(-0.99, 0.99)


@pytest.mark.parametrize("v", INTERVALS, ids=lambda v: f"{v['n']}-{v['w']}-{v['l']}")
def test_reference_intervals(v):
    pairs = Pairs.binary(v["n"], v["w"], v["l"])
    assert tango_interval(pairs, 0.95) == pytest.approx(v["tango95"], abs=1e-9)
    assert tango_interval(pairs, 0.90) == pytest.approx(v["tango90"], abs=1e-9)


def test_published_interval():
    v = VECTORS["tango_published"]
    low, high = tango_interval(Pairs.binary(v["n"], v["w"], v["l"]), v["level"])
    assert [round(low, 4), round(high, 4)] == v["interval"]


@pytest.mark.parametrize("v", VECTORS["non_inferiority"])
def test_reference_non_inferiority(v):
    z, p = non_inferiority(Pairs.binary(v["n"], v["w"], v["l"]), v["margin"])
    assert (round(z, 6), round(p, 6)) == (v["z"], v["p"])


def test_without_a_margin_it_is_mcnemars_chi_square():
    from statsmodels.stats.contingency_tables import mcnemar

    (a, won), (lost, d) = VECTORS["chi_square"]["table"]
    pairs = Pairs.binary(a + won + lost + d, won, lost)
    found = mcnemar(VECTORS["chi_square"]["table"], exact=False, correction=False)
    assert round(tango_z(pairs) ** 2, 5) == VECTORS["chi_square"]["chi2"]
    assert tango_z(pairs) ** 2 == pytest.approx(found.statistic, rel=1e-12)
    assert tango_test(pairs) == pytest.approx(found.pvalue, rel=1e-12)


@pytest.mark.parametrize("n, w, lost, null", [(30, 8, 3, -0.1), (30, 8, 3, 0.3), (12, 0, 5, 0.2), (12, 7, 0, -0.4)])
def test_the_score_uses_the_most_likely_rates_under_the_null(n, w, lost, null):
    """p10 = p01 + null; the p01 with the greatest trinomial likelihood, found by trying many."""
    lowest = max(0.0, -null)
    p01 = np.linspace(lowest, (1 - null) / 2, 400_001)[1:-1]
    likelihood = (n - w - lost) * np.log(1 - 2 * p01 - null)
    likelihood += w * np.log(p01 + null) if w else 0
    likelihood += lost * np.log(p01) if lost else 0
    best = p01[likelihood.argmax()]
    want = (w - lost - n * null) / sqrt(n * (2 * best + null - null**2))
    assert tango_z(Pairs.binary(n, w, lost), null) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("n", [1, 2, 10, 500])
def test_no_problem_differs(n):
    high = Z95**2 / (n + Z95**2)
    assert tango_interval(Pairs.binary(n, 0, 0), 0.95) == pytest.approx((-high, high), rel=1e-12)
    assert tango_z(Pairs.binary(n, 0, 0)) == 0
    assert tango_test(Pairs.binary(n, 0, 0)) == 1
    # z = √(n·m/(1 − m))
    assert non_inferiority(Pairs.binary(n, 0, 0), 0.2)[0] == pytest.approx(sqrt(n * 0.25), rel=1e-12)


@pytest.mark.parametrize("n", [1, 7, 100])
def test_every_problem_is_won(n):
    low, high = tango_interval(Pairs.binary(n, n, 0), 0.95)
    assert high == 1
    assert -1 < low < 1
    assert tango_interval(Pairs.binary(n, 0, n), 0.95) == (-1, -low)
    assert non_inferiority(Pairs.binary(n, 0, n), 0.1)[1] > 0.5


@given(binary, nulls)
@settings(max_examples=200, deadline=None)
def test_exchanging_the_arms(pairs, null):
    assert tango_z(pairs.swap(), -null) == -tango_z(pairs, null)
    assert tango_test(pairs.swap(), "less", -null) == tango_test(pairs, "greater", null)
    assert 0 <= tango_test(pairs, null=null) <= 1
    low, high = tango_interval(pairs, 0.9)
    assert tango_interval(pairs.swap(), 0.9) == (-high, -low)
    assert -1 <= low <= pairs.difference <= high <= 1


@given(binary, nulls, st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_z_falls_as_the_null_grows(pairs, null, share):
    more = null + share * (0.995 - null)
    assert tango_z(pairs, more) <= tango_z(pairs, null) + 1e-9


@given(binary, nulls, st.sampled_from([0.8, 0.9, 0.95, 0.9875]))
@settings(max_examples=200, deadline=None)
def test_the_interval_holds_what_the_test_does_not_reject(pairs, null, level):
    low, high = tango_interval(pairs, level)
    p = tango_test(pairs, null=null)
    if abs(p - (1 - level)) > 1e-9:
        assert (low <= null <= high) == (p > 1 - level)


@given(binary, st.floats(0.01, 0.9), st.sampled_from([0.05, 0.025, 0.0125]))
@settings(max_examples=200, deadline=None)
def test_non_inferior_when_the_interval_stays_above_the_margin(pairs, margin, alpha):
    _, p = non_inferiority(pairs, margin)
    low, _ = tango_interval(pairs, 1 - 2 * alpha)
    if abs(p - alpha) > 1e-9:
        assert (p <= alpha) == (low > -margin)


@given(binary, st.floats(0.01, 0.8), st.floats(0.001, 0.1))
@settings(max_examples=100, deadline=None)
def test_a_wider_margin_is_easier(pairs, margin, more):
    assert non_inferiority(pairs, margin + more)[1] <= non_inferiority(pairs, margin)[1] + 1e-12


def test_far_tails_keep_their_relative_accuracy():
    z = tango_z(Pairs.binary(400, 300, 0))
    assert z == pytest.approx(sqrt(300))
    # Φ̄(z) ≈ φ(z)/z·(1 − 1/z²)
    assert log(tango_test(Pairs.binary(400, 300, 0), "greater")) == pytest.approx(
        -(z**2) / 2 - log(z * sqrt(2 * np.pi)) + log(1 - z**-2), abs=1e-4
    )


def test_impossible_arguments_are_refused():
    one, several = Pairs.binary(10, 3, 1), Pairs.from_differences([2, 0, -1], samples=2)
    for call in (
        lambda: tango_interval(several, 0.9),
        lambda: tango_z(several),
        lambda: non_inferiority(several, 0.1),
        lambda: tango_interval(one, 1.0),
        lambda: tango_interval(one, float("nan")),
        lambda: tango_z(one, 1.0),
        lambda: tango_test(one, "bigger"),
        lambda: non_inferiority(one, 0.0),
        lambda: non_inferiority(one, -0.1),
    ):
        with pytest.raises(ValueError):
            call()
