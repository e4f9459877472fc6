"""The sign-flip test against enumeration, scipy, McNemar, reference values, and itself with the arms exchanged."""

import json
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.mcnemar import mcnemar_exact
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.sign_flip import patterns_reaching, sign_flip

VECTOR = json.loads((Path(__file__).parent / "vectors.json").read_text())["lattice"]
ALTERNATIVES = ("two-sided", "greater", "less")

lattices = st.integers(1, 5).flatmap(
    lambda k: st.builds(Pairs.from_differences, st.lists(st.integers(-k, k), min_size=1, max_size=40), st.just(k))
)


def enumerated(differences: list[int]) -> dict[str, Fraction]:
    """p of each alternative by walking through all 2ⁿ sign patterns, zeros included."""
    observed, share = sum(differences), Fraction(1, 2 ** len(differences))
    sums = [sum(s * d for s, d in zip(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    return {
        "two-sided": sum(abs(s) >= abs(observed) for s in sums) * share,
        "greater": sum(s >= observed for s in sums) * share,
        "less": sum(s <= observed for s in sums) * share,
    }


def test_reference_values():
    pairs = Pairs.from_differences(VECTOR["differences"], VECTOR["samples"])
    assert sign_flip(pairs) == VECTOR["sign_flip_two_sided"]
    assert sign_flip(pairs, "greater") == VECTOR["sign_flip_greater"]


@pytest.mark.parametrize(
    "differences, samples",
    [
        ([0], 1),
        ([0, 0, 0], 3),
        ([1], 1),
        ([2, -1, 0, 2, 1], 2),
        ([-3, 3, 1, 0, 2, -1, 3], 3),
        ([4, -4, 4, 2, -2, 0, 4, 4, 2, 4], 4),  # common factor 2
        ([-5, -4, -3, -2, -1], 5),
    ],
)
def test_equals_enumeration_of_all_sign_patterns(differences, samples):
    want = enumerated(differences)
    for alternative in ALTERNATIVES:
        assert sign_flip(Pairs.from_differences(differences, samples), alternative) == float(want[alternative])


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=11))
@settings(max_examples=40, deadline=None)
def test_equals_enumeration_whatever_the_differences(differences):
    want = enumerated(differences)
    for alternative in ALTERNATIVES:
        assert sign_flip(Pairs.from_differences(differences, 6), alternative) == float(want[alternative])


@pytest.mark.parametrize("differences", [[2, -1, 3, 1, 4, -2, 2, 1, 3], [1, 1, 1, -1, 1]])
def test_scipy_agrees(differences):
    from scipy.stats import permutation_test

    for alternative in ALTERNATIVES:
        found = permutation_test(
            (np.array(differences),), np.sum, permutation_type="samples", n_resamples=np.inf, alternative=alternative
        )
        assert sign_flip(Pairs.from_differences(differences, 4), alternative) == pytest.approx(found.pvalue, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from(ALTERNATIVES))
def test_is_mcnemar_with_one_sample(w, lost, alternative):
    pairs = Pairs.binary(w + lost + 5, w, lost)
    assert sign_flip(pairs, alternative) == mcnemar_exact(pairs, alternative)


@given(lattices)
@settings(max_examples=80, deadline=None)
def test_exchanging_the_arms(pairs):
    assert sign_flip(pairs.swap()) == sign_flip(pairs)
    assert sign_flip(pairs.swap(), "less") == sign_flip(pairs, "greater")
    for alternative in ALTERNATIVES:
        assert 0 < sign_flip(pairs, alternative) <= 1


@given(lattices, st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_the_unit_does_not_matter(pairs, factor):
    differences = [j for j, c in enumerate(pairs.counts, -pairs.samples) for _ in range(c)]
    scaled = Pairs.from_differences([factor * d for d in differences], factor * pairs.samples)
    assert sign_flip(scaled) == sign_flip(pairs)


@given(lattices, st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_ties_say_nothing(pairs, more):
    counts = list(pairs.counts)
    counts[pairs.samples] += more
    assert sign_flip(Pairs(pairs.samples, tuple(counts))) == sign_flip(pairs)


@given(lattices)
@settings(max_examples=80, deadline=None)
def test_a_loss_that_becomes_a_win_of_its_size_is_more_evidence(pairs):
    if pairs.losses:
        counts, k = list(pairs.counts), pairs.samples
        at = next(j for j in range(-k, 0) if counts[k + j])
        counts[k + at] -= 1
        counts[k - at] += 1
        assert sign_flip(Pairs(k, tuple(counts)), "greater") <= sign_flip(pairs, "greater")


def test_every_pattern_is_counted_once():
    assert patterns_reaching([1, 2, 3, 4], 0) == 16
    assert patterns_reaching([1, 2, 3, 4], 11) == 0
    assert patterns_reaching([], 0) == 1
    assert patterns_reaching([7] * 1000, 7 * 1000) == 1
    assert patterns_reaching([7] * 1000, 0) == 2**1000


def test_size_never_exceeds_the_level():
    """Given the sizes |K·d| the test's size is the share of patterns it rejects."""
    sizes = [1, 1, 2, 3, 3, 3, 2, 1]
    p = [
        sign_flip(Pairs.from_differences([s * d for s, d in zip(signs, sizes)], 3))
        for signs in product((1, -1), repeat=len(sizes))
    ]
    for alpha in (0.01, 0.0125, 0.05, 0.2):
        assert np.mean(np.array(p) <= alpha) <= alpha


def test_unknown_alternative_is_refused():
    with pytest.raises(ValueError, match="alternative"):
        sign_flip(Pairs.binary(10, 1, 0), "bigger")
