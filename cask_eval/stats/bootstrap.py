"""The paired bootstrap: exact on the lattice, Monte Carlo off it.

Resampling n problems with replacement makes S* a sum of n independent draws from the observed differences, so its
distribution is the n-fold convolution of their empirical one (Davison & Hinkley 1997, ch. 2): no seed, no number
of replicates, no simulation error. Every term is positive, so each probability keeps its relative accuracy far
into the tails; an FFT would lose everything below 1e-16.

Off the lattice (`bootstrap_ratio_interval`) B replicates are drawn. The end points are the order statistics of rank
(B+1)·a and (B+1)·(1−a) (Davison & Hinkley 1997, ch. 5), which belongs with p = (1 + #)/(B+1): choose B so that
(B+1)·a is an integer, such as 9999.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from cask_eval.stats import _draws
from cask_eval.stats._checks import Alternative, check_alternative, check_inside
from cask_eval.stats.pairs import Pairs

B = 9999

# BLAS splits longer dot products over threads: slow on a busy machine, and the last digit then depends on how many
# threads there are.
_BLOCK = 4096


def sum_pmf(pmf: np.ndarray, n: int) -> np.ndarray:
    """Distribution of the sum of n independent draws from `pmf` [s], as [n·(s−1) + 1], by binary powering."""
    out, power = np.ones(1), np.asarray(pmf, dtype=np.float64)
    while True:
        if n & 1:
            out = _convolve(out, power)
        n >>= 1
        if not n:
            return out
        power = _convolve(power, power)


@lru_cache(maxsize=64)
def resampled(pairs: Pairs) -> tuple[int, np.ndarray]:
    """(lowest, pmf): `pmf[i]` is P*(S* = lowest + i), in units of 1/(nK). Read-only."""
    # Only the observed range takes part: with K = 8, differences are seldom ±8.
    seen = [j for j, c in enumerate(pairs.counts, -pairs.samples) if c]
    counts = pairs.counts[seen[0] + pairs.samples : seen[-1] + pairs.samples + 1]
    pmf = sum_pmf(np.array(counts) / pairs.n, pairs.n)
    pmf.setflags(write=False)
    return seen[0] * pairs.n, pmf


def paired_bootstrap(pairs: Pairs, alternative: Alternative = "two-sided") -> float:
    """p of the paired percentile bootstrap, computed exactly.

    ``greater`` is P*(S* ≤ 0), small when the candidate is better; ``less`` is P*(S* ≥ 0); ``two-sided`` is
    min(1, 2·min of both). Zero counts on both sides: leaving it out gives a test of size up to .23.
    The test inverts `percentile_interval` (Davison & Hinkley 1997, ch. 5). Below about 20 problems that differ it
    rejects more often than its level. Raises ValueError on an unknown alternative.
    """
    check_alternative(alternative)
    lowest, pmf = resampled(pairs)
    zero = -lowest
    below = _total(pmf[: max(0, zero + 1)])
    above = _total(pmf[max(0, zero) :])
    if alternative == "two-sided":
        return min(1.0, 2 * min(below, above))
    return below if alternative == "greater" else above


def percentile_interval(pairs: Pairs, level: float | Fraction) -> tuple[Fraction, Fraction]:
    """Exact two-sided percentile interval of the mean difference (Efron & Tibshirani 1993, §13.3).

    With a = (1 − level)/2: the smallest S* with P*(S* ≤ ·) ≥ a and the largest with P*(S* ≥ ·) ≥ a, over nK.
    It leaves out 0 exactly when the two-sided p is below 1 − level. Raises ValueError unless 0 < level < 1.
    """
    check_inside("level", float(level), 0, 1)
    lowest, pmf = resampled(pairs)
    low, high = quantiles(pmf, float((1 - level) / 2))
    unit = pairs.n * pairs.samples
    return Fraction(lowest + low, unit), Fraction(lowest + high, unit)


def quantiles(pmf: np.ndarray, tail: float) -> tuple[int, int]:
    """First index whose lower tail and last index whose upper tail reach `tail`. Each tail is summed from its own
    end, so that exchanging the arms mirrors the result."""
    low = int(np.searchsorted(np.cumsum(pmf), tail))
    high = int(np.searchsorted(np.cumsum(pmf[::-1]), tail))
    return low, len(pmf) - 1 - high


def bootstrap_ratio_interval(
    numerators: Sequence[float | Fraction],
    denominators: Sequence[float | Fraction],
    level: float | Fraction,
    seed: int,
    replicates: int = B,
) -> tuple[float, float]:
    """Monte Carlo percentile interval of mean(numerators)/mean(denominators), resampled by item.

    numerators, denominators: [n], positive, of the same items in the same order. A seed gives one interval
    everywhere. Raises ValueError on empty or unequal lengths, values that are not positive, a level outside (0, 1),
    or too few replicates for that level.
    """
    check_inside("level", float(level), 0, 1)
    if len(numerators) != len(denominators) or not len(numerators):
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators do not pair up")
    both = np.array([[float(v) for v in numerators], [float(v) for v in denominators]])
    if not (both > 0).all():
        raise ValueError("numerators and denominators must be positive")
    rank = rank_of(level, replicates)
    ratios = np.sort(_ratios(both, seed, replicates))
    return float(ratios[rank - 1]), float(ratios[replicates - rank])


def rank_of(level: float | Fraction, replicates: int) -> int:
    """Rank of the lower end among sorted replicates; the upper end has the same rank from above. Raises ValueError when
    there are too few of them."""
    rank = round(float((replicates + 1) * (1 - Fraction(level)) / 2))
    if rank < 1:
        raise ValueError(f"{replicates} replicates are too few for level {level}")
    return rank


def _ratios(both: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    n = both.shape[1]
    bits, out = _draws.generator(seed), []
    for rows in _draws.blocks(replicates, n):
        drawn = _draws.indices(bits, rows, n)
        out.append(both[0][drawn].sum(axis=1) / both[1][drawn].sum(axis=1))
    return np.concatenate(out)


def _convolve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.zeros(len(a) + len(b) - 1)
    for i in range(0, len(b), _BLOCK):
        part = np.convolve(a, b[i : i + _BLOCK])
        out[i : i + len(part)] += part
    return out


def _total(pmf: np.ndarray) -> float:
    return min(1.0, float(pmf.sum()))
