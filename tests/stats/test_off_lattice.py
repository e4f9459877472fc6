"""Real-valued differences against enumeration in fractions, scipy, and the exact procedures on the lattice."""

from decimal import Decimal
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.bootstrap import paired_bootstrap, percentile_interval
from cask_eval.stats.off_lattice import bootstrap_interval, bootstrap_p, sign_flip_reals
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.sign_flip import sign_flip

ALTERNATIVES = ("two-sided", "greater", "less")
RNG = np.random.default_rng(11)
LOSSES = (RNG.normal(0.03, 0.1, 60)).tolist()

# Few places, so that sums tie.
tying = st.lists(st.decimals(-2, 2, places=1), min_size=1, max_size=10)


def enumerated(differences, alternative):
    exact = [Fraction(d) for d in differences]
    observed = sum(exact)
    sums = [sum(s * d for s, d in zip(signs, exact)) for signs in product((1, -1), repeat=len(exact))]
    reach = {
        "two-sided": lambda s: abs(s) >= abs(observed),
        "greater": lambda s: s >= observed,
        "less": lambda s: s <= observed,
    }[alternative]
    return sum(map(reach, sums)) / 2 ** len(exact)


class TestSignFlip:
    @given(tying, st.sampled_from(ALTERNATIVES))
    @settings(max_examples=60, deadline=None)
    def test_equals_enumeration_where_sums_tie(self, differences, alternative):
        assert sign_flip_reals(differences, alternative) == (enumerated(differences, alternative), True)

    @given(
        st.lists(st.floats(-1, 1).map(lambda v: round(v, 12)), min_size=1, max_size=9), st.sampled_from(ALTERNATIVES)
    )
    @settings(max_examples=60, deadline=None)
    def test_equals_enumeration_of_floats(self, differences, alternative):
        found, exact = sign_flip_reals(differences, alternative)
        assert exact and found == pytest.approx(enumerated(differences, alternative), rel=1e-12)

    def test_a_sum_that_only_rounding_separates_still_counts(self):
        # Σ = 0 in decimals: every pattern reaches it. In floats the observed sum is 5.6e-17 and two patterns miss it.
        assert sign_flip_reals([Decimal("0.1"), Decimal("0.2"), Decimal("-0.3")]) == (1.0, True)

    @pytest.mark.parametrize("alternative", ALTERNATIVES)
    def test_scipy_agrees(self, alternative):
        from scipy.stats import permutation_test

        found = permutation_test(
            (np.array(LOSSES[:11]),), np.sum, permutation_type="samples", n_resamples=np.inf, alternative=alternative
        )
        assert sign_flip_reals(LOSSES[:11], alternative)[0] == pytest.approx(found.pvalue, rel=1e-12)

    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=60))
    @settings(max_examples=40, deadline=None)
    def test_on_a_lattice_it_is_the_exact_test(self, differences):
        found = sign_flip_reals([Fraction(d, 3) for d in differences])
        assert found == (sign_flip(Pairs.from_differences(differences, 3)), True)

    @pytest.mark.parametrize("alternative", ALTERNATIVES)
    def test_random_patterns_are_close_to_all_of_them(self, alternative):
        # In hundredths all patterns can be counted; as floats with noise at the ninth place they cannot.
        rough = [Fraction(round(100 * d), 100) for d in LOSSES]
        noisy = [float(d) + 1e-9 * i for i, d in enumerate(rough)]
        exact, counted = sign_flip_reals(rough, alternative)
        found, all_of_them = sign_flip_reals(noisy, alternative, seed=5)
        assert counted and not all_of_them
        assert found == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 9999) ** 0.5 + 1e-3)

    def test_p_is_never_zero(self):
        shifted = [5 + d for d in LOSSES]
        assert sign_flip_reals(shifted, replicates=999) == (0.001, False)

    def test_nothing_differs(self):
        assert sign_flip_reals([0.0] * 50) == (1.0, True)


class TestBootstrap:
    @pytest.mark.parametrize("alternative", ALTERNATIVES)
    def test_p_is_close_to_the_exact_one_on_a_lattice(self, alternative):
        pairs = Pairs.from_differences([2, 1, -1, 0, 1, 1, -2, 2, 0, 1, 1, -1] * 3, 2)
        differences = [Fraction(j, 2) for j, c in enumerate(pairs.counts, -2) for _ in range(c)]
        exact = paired_bootstrap(pairs, alternative)
        assert bootstrap_p(differences, alternative, seed=3) == pytest.approx(
            exact, abs=8 * (exact * (1 - exact) / 9999) ** 0.5 + 2e-4
        )
        low, high = percentile_interval(pairs, 0.9)
        assert bootstrap_interval(differences, 0.9, seed=3) == pytest.approx((float(low), float(high)), abs=1 / 36)

    def test_interval_agrees_with_scipy(self):
        from scipy.stats import bootstrap

        want = bootstrap(
            (np.array(LOSSES),), np.mean, confidence_level=0.9, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        found = bootstrap_interval(LOSSES, 0.9, seed=2)
        assert found == pytest.approx((want.low, want.high), abs=0.06 * (want.high - want.low))

    @pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.98])
    @pytest.mark.parametrize("shift", [0, 0.01, 0.02, -0.05])
    def test_the_test_inverts_the_interval(self, level, shift):
        differences = [d + shift for d in LOSSES]
        low, high = bootstrap_interval(differences, level, seed=1, replicates=1999)
        p = bootstrap_p(differences, seed=1, replicates=1999)
        assert (low > 0 or high < 0) == (p <= 1 - level + 1e-12)

    def test_zero_counts_on_both_sides(self):
        assert bootstrap_p([0.0, 0.0, 0.0]) == 1
        assert bootstrap_p([0.0, 0.0], "greater", replicates=99) == 1
        # Decimal differences that cancel are exactly zero in every resample that draws them equally often.
        assert bootstrap_p([Decimal("0.1"), Decimal("-0.1")], "greater", replicates=999, seed=1) == pytest.approx(
            0.75, abs=0.06
        )

    def test_exchanging_the_arms(self):
        other = [-d for d in LOSSES]
        assert bootstrap_p(other, "less", seed=9) == bootstrap_p(LOSSES, "greater", seed=9)
        low, high = bootstrap_interval(LOSSES, 0.95, seed=9)
        assert bootstrap_interval(other, 0.95, seed=9) == (-high, -low)

    def test_one_seed_gives_one_interval_on_every_numpy(self):
        differences = [Fraction((i * i) % 17 - 8, 100) for i in range(40)]
        found = bootstrap_interval(differences, 0.95, seed=2024, replicates=999)
        assert [format(v, ".9g") for v in found] == ["-0.021", "0.0155"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: sign_flip_reals([]),
        lambda: sign_flip_reals([0.1, float("nan")]),
        lambda: sign_flip_reals([0.1], "bigger"),
        lambda: sign_flip_reals(LOSSES, replicates=0),
        lambda: bootstrap_p([0.1], "bigger"),
        lambda: bootstrap_p([0.1], replicates=0),
        lambda: bootstrap_interval([0.1], 1.0),
        lambda: bootstrap_interval([0.1], 0.999, replicates=99),
    ],
    ids=["empty", "nan", "alternative", "replicates", "bootstrap alternative", "none", "level", "few"],
)
def test_refusals(call):
    with pytest.raises(ValueError):
        call()
