"""The model of several samples, and the power simulated from it."""

from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.lattice_power import difference_pmf, simulated_power, variance_factor
from cask_eval.stats.power import exact_power

designs = st.tuples(
    st.floats(0.05, 1),
    st.floats(-1, 1),
    st.integers(1, 8),
    st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.001, 0.999)),
).map(lambda d: (d[0], d[0] * d[1], *d[2:]))


@given(designs)
@settings(deadline=None)
def test_mean_and_variance_are_those_of_the_model(design):
    q, delta, k, rho = design
    pmf, d = difference_pmf(*design), np.arange(-k, k + 1) / k
    mean = pmf @ d
    assert pmf.sum() == pytest.approx(1) and (pmf >= 0).all()
    assert mean == pytest.approx(delta, abs=1e-9)
    assert pmf @ d**2 - mean**2 == pytest.approx((q - delta**2) * variance_factor(k, rho), abs=1e-9)


@given(designs)
@settings(deadline=None)
def test_exchanging_the_arms(design):
    q, delta, k, rho = design
    assert difference_pmf(q, -delta, k, rho) == pytest.approx(difference_pmf(*design)[::-1], abs=1e-12)


def test_one_sample_is_the_trinomial_whatever_the_correlation():
    for rho in (0, 0.3, 1):
        assert difference_pmf(0.3, 0.1, 1, rho) == pytest.approx([0.1, 0.7, 0.2])


def test_independent_samples_by_hand():
    # K = 2, ρ = 0: two draws from (.2, .7, .1)
    assert difference_pmf(0.3, 0.1, 2, 0) == pytest.approx([0.01, 0.14, 0.49 + 0.04, 0.28, 0.04])


def test_correlated_samples_by_drawing_the_chances():
    rng = np.random.default_rng(3)
    rho, k = 0.4, 3
    chances = rng.dirichlet(np.array([0.2, 0.7, 0.1]) * (1 / rho - 1), 200_000)
    wins, _, losses = rng.multinomial(k, chances).T
    seen = np.bincount(wins - losses + k, minlength=2 * k + 1) / 200_000
    assert difference_pmf(0.3, 0.1, k, rho) == pytest.approx(seen, abs=0.005)


@pytest.mark.parametrize("procedure", ["sign_flip", "paired_bootstrap", "mcnemar_midp"])
@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_with_one_sample_it_estimates_the_exact_power(procedure, alternative):
    want = exact_power(80, 0.3, 0.15, 0.05, alternative, procedure)
    found, error = simulated_power(80, 0.3, 0.15, 0.05, 1, 0, procedure, alternative, seed=1, replicates=2000)
    assert error == pytest.approx(sqrt(found * (1 - found) / 2000))
    assert found == pytest.approx(want, abs=4 * error)


def test_samples_that_are_alike_add_nothing_and_others_do():
    alone, alike, apart = (
        simulated_power(100, 0.3, 0.1, 0.05, k, rho, seed=2)[0] for k, rho in ((1, 0), (4, 1), (4, 0))
    )
    assert alike == pytest.approx(alone, abs=0.06)
    assert apart > alone + 0.2


def test_size_of_the_sign_flip_test_is_at_most_its_level():
    size, error = simulated_power(40, 0.4, 0, 0.05, 4, 0.3, seed=4, replicates=4000)
    assert size <= 0.05 + 3 * error


def test_one_seed_one_result():
    design = (60, 0.3, 0.1, 0.05, 4, 0.3)
    assert simulated_power(*design, seed=7) == simulated_power(*design, seed=7)
    assert simulated_power(*design, seed=7) != simulated_power(*design, seed=8)


def test_exact_power_of_the_bootstrap_by_full_enumeration():
    from cask_eval.stats.bootstrap import paired_bootstrap
    from cask_eval.stats.pairs import Pairs

    n, q, delta, alpha = 20, 0.4, 0.2, 0.05
    won, lost, total = (q + delta) / 2, (q - delta) / 2, 0.0
    for w in range(n + 1):
        for x in range(n + 1 - w):
            if w > x and paired_bootstrap(Pairs.binary(n, w, x)) <= alpha:
                total += comb(n, w) * comb(n - w, x) * won**w * lost**x * (1 - q) ** (n - w - x)
    assert exact_power(n, q, delta, alpha, procedure="paired_bootstrap") == pytest.approx(total, rel=1e-9)
    assert exact_power(n, q, -delta, alpha, procedure="paired_bootstrap") == pytest.approx(total, rel=1e-9)
    assert exact_power(n, q, -delta, alpha, "less", "mcnemar_midp") == exact_power(
        n, q, delta, alpha, "greater", "mcnemar_midp"
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: difference_pmf(0.2, 0.3, 2, 0),
        lambda: difference_pmf(0, 0, 2, 0),
        lambda: difference_pmf(0.2, 0.1, 0, 0),
        lambda: difference_pmf(0.2, 0.1, 2, 1.1),
        lambda: simulated_power(0, 0.2, 0.1, 0.05, 2, 0),
        lambda: simulated_power(10, 0.2, 0.1, 1, 2, 0),
        lambda: simulated_power(10, 0.2, 0.1, 0.05, 2, 0, alternative="bigger"),
        lambda: simulated_power(10, 0.2, 0.1, 0.05, 2, 0, replicates=0),
    ],
)
def test_impossible_designs_are_refused(call):
    with pytest.raises(ValueError):
        call()
