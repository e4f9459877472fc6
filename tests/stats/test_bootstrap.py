"""The exact bootstrap against enumeration, scipy, reference values, and itself with the arms exchanged."""

import json
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.bootstrap import (
    bootstrap_ratio_interval,
    paired_bootstrap,
    percentile_interval,
    quantiles,
    resampled,
    sum_pmf,
)
from cask_eval.stats.mcnemar import mcnemar_exact
from cask_eval.stats.pairs import Pairs

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
BOOTSTRAPPED = [v for v in VECTORS["binary"] if "boot_two" in v]

lattices = st.integers(1, 4).flatmap(
    lambda k: st.builds(Pairs.from_differences, st.lists(st.integers(-k, k), min_size=1, max_size=40), st.just(k))
)


def enumerated(differences: list[int]) -> dict[int, Fraction]:
    """Distribution of S* by walking through all nⁿ resamples."""
    out: dict[int, Fraction] = {}
    share = Fraction(1, len(differences) ** len(differences))
    for drawn in product(differences, repeat=len(differences)):
        out[sum(drawn)] = out.get(sum(drawn), Fraction(0)) + share
    return out


@pytest.mark.parametrize("v", BOOTSTRAPPED, ids=lambda v: f"{v['n']}-{v['w']}-{v['l']}")
def test_reference_values(v):
    pairs = Pairs.binary(v["n"], v["w"], v["l"])
    assert paired_bootstrap(pairs, "greater") == pytest.approx(v["boot_le0"], rel=1e-12)
    assert paired_bootstrap(pairs) == pytest.approx(v["boot_two"], rel=1e-12)


def test_reference_values_on_a_finer_lattice():
    v = VECTORS["lattice"]
    pairs = Pairs.from_differences(v["differences"], v["samples"])
    assert paired_bootstrap(pairs, "greater") == pytest.approx(v["boot_le0"], rel=1e-12)
    assert pairs.standard_error == pytest.approx(v["standard_error"], rel=1e-12)


@pytest.mark.parametrize(
    "differences, samples",
    [([1, 0, -1, 1], 1), ([1, 1, 1, 0, 0], 1), ([2, -1, 0, 2, 1], 2), ([0, 0, 0], 1), ([-3, 3, 1, 0, 2, -1], 3)],
)
def test_equals_enumeration_of_all_resamples(differences, samples):
    pairs = Pairs.from_differences(differences, samples)
    want = enumerated(differences)
    lowest, pmf = resampled(pairs)
    got = {lowest + i: p for i, p in enumerate(pmf) if p}
    assert got.keys() == want.keys()
    assert all(got[s] == pytest.approx(float(want[s]), rel=1e-12) for s in want)

    below = sum(p for s, p in want.items() if s <= 0)
    above = sum(p for s, p in want.items() if s >= 0)
    assert paired_bootstrap(pairs, "greater") == pytest.approx(float(below), rel=1e-12)
    assert paired_bootstrap(pairs, "less") == pytest.approx(float(above), rel=1e-12)
    assert paired_bootstrap(pairs) == pytest.approx(float(min(1, 2 * min(below, above))), rel=1e-12)


def test_tail_keeps_its_relative_accuracy():
    # S* ≤ 0 with 60 wins in 100 needs all draws to miss: (2/5)^100 ≈ 1.6e-40, far below what an FFT can resolve.
    assert paired_bootstrap(Pairs.binary(100, 60, 0), "greater") == pytest.approx(0.4**100, rel=1e-11)


def test_blocks_change_nothing(monkeypatch):
    from cask_eval.stats import bootstrap

    pmf = np.array([0.2, 0.5, 0.3])
    whole = sum_pmf(pmf, 40)
    monkeypatch.setattr(bootstrap, "_BLOCK", 7)
    assert sum_pmf(pmf, 40) == pytest.approx(whole, rel=1e-13)


def test_five_flips_pass_the_bootstrap_but_not_mcnemar():
    pairs = Pairs.binary(100, 5, 0)
    assert paired_bootstrap(pairs) == pytest.approx(0.01184, abs=5e-6)
    assert mcnemar_exact(pairs) == 0.0625


@pytest.mark.parametrize("discordance, size", [("0.06", 0.0200), ("0.15", 0.0134), ("0.25", 0.0121)])
def test_size_at_the_bonferroni_level_by_full_enumeration(discordance, size):
    """Anti-conservative when few problems flip, at nominal .0125; this is why lint asks for 20."""
    n, q = 100, Fraction(discordance)
    rejected = 0.0
    for d in range(61):  # more than 60 discordant pairs have probability below 1e-13
        given_d = sum(comb(d, w) for w in range(d + 1) if paired_bootstrap(Pairs.binary(n, w, d - w)) <= 0.0125)
        rejected += float(comb(n, d) * q**d * (1 - q) ** (n - d) * Fraction(given_d, 2**d))
    assert rejected == pytest.approx(size, abs=5e-5)


def test_scipy_bootstrap_agrees():
    from scipy.stats import bootstrap

    differences = np.repeat([1, 0, -1], [18, 75, 7])
    found = bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5), batch=2000
    )
    pairs = Pairs.from_differences(differences.tolist())
    assert found.standard_error == pytest.approx(pairs.standard_error, rel=0.03)
    low, high = percentile_interval(pairs, 0.95)
    assert found.confidence_interval.low == pytest.approx(float(low), abs=0.0101)
    assert found.confidence_interval.high == pytest.approx(float(high), abs=0.0101)
    share = float((found.bootstrap_distribution <= 1e-12).mean())
    assert share == pytest.approx(paired_bootstrap(pairs, "greater"), abs=4 * (0.015 / 10_000) ** 0.5)


def test_interval_of_a_published_sample():
    """scipy's and R's bootstrap tests use this sample; in tenths it lies on the integers."""
    v = VECTORS["one_sample"]
    tenths = np.array([round(10 * x) for x in v["x"]])
    n, lowest = len(tenths), int(tenths.min())
    # 16 draws of up to 213 points: the long convolutions are done in blocks.
    pmf = sum_pmf(np.bincount(tenths - lowest) / n, n)
    found = [(i + n * lowest) / n / 10 for i in quantiles(pmf, 0.025)]
    assert found == pytest.approx(v["exact_percentile95"], abs=1e-9)
    assert found == pytest.approx(v["R_boot_percentile_R199999"], abs=0.1)


def test_interval_by_hand():
    # One win in two problems: S* is 0, 1, 2 with probability ¼, ½, ¼.
    pairs = Pairs.binary(2, 1, 0)
    assert percentile_interval(pairs, 0.6) == (0, 1)  # each tail .2 is reached at the ends
    assert percentile_interval(pairs, 0.4) == (Fraction(1, 2), Fraction(1, 2))


@given(lattices)
@settings(max_examples=60, deadline=None)
def test_exchanging_the_arms(pairs):
    other = pairs.swap()
    assert paired_bootstrap(other) == pytest.approx(paired_bootstrap(pairs), rel=1e-12)
    assert paired_bootstrap(other, "less") == pytest.approx(paired_bootstrap(pairs, "greater"), rel=1e-12)
    low, high = percentile_interval(pairs, 0.9)
    assert percentile_interval(other, 0.9) == (-high, -low)


@given(lattices, st.sampled_from([0.5, 0.8, 0.95, 0.9875]))
@settings(max_examples=50, deadline=None)
def test_the_test_inverts_the_interval(pairs, level):
    low, high = percentile_interval(pairs, level)
    p = paired_bootstrap(pairs)
    assert 0 <= p <= 1
    if abs(p - (1 - level)) > 1e-9:
        assert (low > 0 or high < 0) == (p < 1 - level)


@given(lattices)
@settings(max_examples=60, deadline=None)
def test_one_more_win_is_more_evidence(pairs):
    if pairs.ties:
        k, counts = pairs.samples, list(pairs.counts)
        counts[k] -= 1
        counts[k + 1] += 1
        assert paired_bootstrap(Pairs(k, tuple(counts)), "greater") <= paired_bootstrap(pairs, "greater") + 1e-12


@given(lattices, st.floats(0.5, 0.99), st.floats(0.001, 0.009))
@settings(max_examples=40, deadline=None)
def test_higher_level_never_narrows(pairs, level, more):
    inner, outer = percentile_interval(pairs, level), percentile_interval(pairs, level + more)
    assert outer[0] <= inner[0] and inner[1] <= outer[1]


def test_zero_counts_on_both_sides():
    assert paired_bootstrap(Pairs.binary(10, 0, 0), "greater") == 1
    assert paired_bootstrap(Pairs.binary(10, 0, 0), "less") == 1


def test_unknown_alternative_and_level_are_refused():
    with pytest.raises(ValueError, match="alternative"):
        paired_bootstrap(Pairs.binary(10, 1, 0), "two_sided")
    for level in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="level"):
            percentile_interval(Pairs.binary(10, 1, 0), level)


class TestRatioInterval:
    ours = [Fraction(130 + i % 7, 2) for i in range(60)]
    theirs = [Fraction(130 + i % 5, 2) for i in range(60)]

    def test_a_constant_ratio_has_no_width(self):
        found = bootstrap_ratio_interval([2 * v for v in self.theirs], self.theirs, 0.9, seed=1, replicates=199)
        assert found == pytest.approx((2, 2))

    def test_pairing_counts(self):
        # Items differ by a factor of 100, the arms by 2 % at most. Only a paired resample sees the narrow ratio.
        theirs = [10.0 ** (i % 3) for i in range(60)]
        ours = [v * (1.01 if i % 2 else 0.99) for i, v in enumerate(theirs)]
        low, high = bootstrap_ratio_interval(ours, theirs, 0.9, seed=1, replicates=999)
        assert 0.99 <= low < high <= 1.01

    def test_agrees_with_scipy(self):
        from scipy.stats import bootstrap

        ours, theirs = np.array(self.ours, float), np.array(self.theirs, float)
        want = bootstrap(
            (ours, theirs),
            lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
            paired=True,
            confidence_level=0.9,
            n_resamples=9999,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
        low, high = bootstrap_ratio_interval(self.ours, self.theirs, 0.9, seed=7)
        width = want.high - want.low
        assert (low, high) == pytest.approx((want.low, want.high), abs=0.06 * width)

    def test_one_seed_gives_one_interval_on_every_numpy(self):
        found = bootstrap_ratio_interval(self.ours, self.theirs, 0.9, seed=2024, replicates=999)
        assert [format(v, ".9g") for v in found] == ["1.00328159", "1.01089021"]
        assert found != bootstrap_ratio_interval(self.ours, self.theirs, 0.9, seed=2025, replicates=999)

    @pytest.mark.parametrize(
        "ours, theirs, level, replicates",
        [([], [], 0.9, 99), ([1], [1, 2], 0.9, 99), ([1, 0], [1, 1], 0.9, 99), ([1], [1], 1.0, 99), ([1], [1], 0.9, 9)],
        ids=["empty", "unequal", "zero", "level", "replicates"],
    )
    def test_refusals(self, ours, theirs, level, replicates):
        with pytest.raises(ValueError):
            bootstrap_ratio_interval(ours, theirs, level, seed=1, replicates=replicates)


def test_several_samples_are_a_cluster_bootstrap():
    """From the trials up: problems are drawn with all their samples, never a sample or an arm by itself."""
    # [problem][arm][sample]: whether the answer was right
    trials = [([1, 0, 1], [1, 1, 1]), ([0, 0, 0], [1, 0, 0]), ([1, 1, 1], [0, 1, 1]), ([0, 1, 0], [1, 1, 0])]
    n, k = len(trials), 3
    below = above = Fraction(0)
    for drawn in product(trials, repeat=n):
        mean = Fraction(sum(sum(candidate) - sum(baseline) for baseline, candidate in drawn), n * k)
        below += Fraction(mean <= 0, n**n)
        above += Fraction(mean >= 0, n**n)
    pairs = Pairs.from_differences([sum(candidate) - sum(baseline) for baseline, candidate in trials], k)
    assert paired_bootstrap(pairs, "greater") == pytest.approx(float(below), rel=1e-12)
    assert paired_bootstrap(pairs, "less") == pytest.approx(float(above), rel=1e-12)


def test_problems_in_groups_are_a_cluster_bootstrap_of_their_sums():
    """Groups of equal size, resampled whole: the group's sum lies on the lattice of group size × K."""
    groups = [[1, 0, 2], [-1, 1, 0], [2, 2, 1], [0, 0, -1], [1, -2, 1]]
    n, size, k = len(groups), 3, 2
    sums = [Fraction(sum(sum(g) for g in drawn), n * size * k) for drawn in product(groups, repeat=n)]
    pairs = Pairs.from_differences([sum(g) for g in groups], size * k)
    assert paired_bootstrap(pairs, "greater") == pytest.approx(sum(s <= 0 for s in sums) / n**n, rel=1e-12)
    ordered = sorted(sums)
    low, high = percentile_interval(pairs, 0.9)
    tail = Fraction(1, 20)
    assert low == next(s for i, s in enumerate(ordered, 1) if Fraction(i, n**n) >= tail)
    assert high == next(s for i, s in enumerate(ordered[::-1], 1) if Fraction(i, n**n) >= tail)
    assert pairs.difference == Fraction(sum(map(sum, groups)), n * size * k)
