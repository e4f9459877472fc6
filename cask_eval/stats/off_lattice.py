"""Tests and intervals of real-valued paired differences: losses, rates, ratios; whatever lies on no coarse lattice.

`differences` [n] are candidate minus baseline, one per problem; sums of them are exact (see `whole`), so that ties are
ties. Everything random has a seed, and p = (1 + #)/(B + 1) (Davison & Hinkley 1997, ch. 4 and 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from cask_eval.stats import _draws
from cask_eval.stats._checks import Alternative, check_alternative, check_inside
from cask_eval.stats.bootstrap import B, rank_of
from cask_eval.stats.reference import Reference
from cask_eval.stats.sign_flip import count_patterns
from cask_eval.stats.whole import Real, drawn_sums, total, whole

# Counting all patterns on the lattice of the integers takes about 1e-10 s times D²·Σ|d|.
_AFFORDABLE = 10**10


def sign_flip_reals(
    differences: Sequence[Real], alternative: Alternative = "two-sided", *, seed: int = 0, replicates: int = B
) -> tuple[float, bool]:
    """(p, exact) of the sign-flip test of mean 0: see `sign_flip`.

    Exact when at most 20 differences are not zero, all patterns being looked at, or when the differences have a unit
    coarse enough for all patterns to be counted on its lattice. Otherwise `replicates` patterns are drawn. Raises
    ValueError on an unknown alternative, NaN, infinities, or no difference.
    """
    check_alternative(alternative)
    integers, _ = whole(differences)
    sizes = np.abs(integers)
    if np.count_nonzero(sizes) ** 2 * float(sizes.sum(dtype=np.float64)) <= _AFFORDABLE:
        return count_patterns(integers.tolist(), alternative), True

    reference = Reference(integers[None], replicates, seed)
    observed, reached = total(integers), 0
    for sums in reference.sums():
        if alternative == "two-sided":
            reached += (np.abs(sums) >= abs(observed)).sum()
        else:
            reached += (sums >= observed if alternative == "greater" else sums <= observed).sum()
    return float(reference.p(reached)), reference.enumerated


def bootstrap_p(
    differences: Sequence[Real], alternative: Alternative = "two-sided", *, seed: int = 0, replicates: int = B
) -> float:
    """Monte Carlo p of the paired percentile bootstrap, resampled by problem: see `paired_bootstrap`.

    Each side's p is (1 + #)/(B + 1), zero counting on both. Raises ValueError as `sign_flip_reals`.
    """
    check_alternative(alternative)
    sums = _resampled(whole(differences)[0], seed, replicates)
    below, above = ((1 + int(side.sum())) / (1 + replicates) for side in (sums <= 0, sums >= 0))
    if alternative == "two-sided":
        return min(1.0, 2 * min(below, above))
    return below if alternative == "greater" else above


def bootstrap_interval(
    differences: Sequence[Real], level: float | Fraction, *, seed: int = 0, replicates: int = B
) -> tuple[float, float]:
    """Monte Carlo percentile interval of the mean difference, from the same resamples as `bootstrap_p`: the order
    statistics of rank (B + 1)·a and (B + 1)·(1 − a) with a = (1 − level)/2 (Davison & Hinkley 1997, ch. 5).

    Raises ValueError as `sign_flip_reals`, on a level outside (0, 1), and when B is too small for it.
    """
    check_inside("level", float(level), 0, 1)
    rank = rank_of(level, replicates)
    integers, unit = whole(differences)
    sums = np.sort(_resampled(integers, seed, replicates))
    ends = (Fraction(sums[i]) * unit / len(integers) for i in (rank - 1, replicates - rank))
    return tuple(float(end) for end in ends)


def _resampled(integers: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    """[replicates]: sums of n draws."""
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}; at least one is needed")
    bits, n = _draws.generator(seed), len(integers)
    return np.concatenate(
        [drawn_sums(_draws.indices(bits, rows, n), integers) for rows in _draws.blocks(replicates, n)]
    )
