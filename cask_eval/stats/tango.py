"""The score test and score interval of a paired difference of proportions, and non-inferiority by it.

Under H0: p10 − p01 = δ the score is z(δ) = (w − l − nδ)/√(n·(2·p̃01 + δ(1 − δ))), where p̃01 is the maximum-likelihood
estimate under H0: the larger root of A·x² + B·x + C = 0 with A = 2n, B = −w − l + (2n − w + l)·δ and
C = −l·δ(1 − δ) (Tango 1998, Statistics in Medicine 17; recommended by Fagerland, Lydersen & Laake 2013). At δ = 0 it
is McNemar's √χ² without continuity correction. z falls as δ grows, so the interval is found by bisection.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import erfc, inf, sqrt
from statistics import NormalDist

from cask_eval.stats._checks import Alternative, check_alternative, check_binary, check_inside
from cask_eval.stats.pairs import Pairs


def tango_z(pairs: Pairs, null: float | Fraction = 0) -> float:
    """z of H0: difference = `null`, positive when the candidate does better than that; 0 where nothing speaks
    either way. Raises ValueError unless K = 1 and −1 < null < 1.
    """
    check_binary("tango_z", pairs.samples)
    check_inside("null", float(null), -1, 1)
    return _z(pairs.n, pairs.wins, pairs.losses, float(null))


def tango_test(pairs: Pairs, alternative: Alternative = "two-sided", null: float | Fraction = 0) -> float:
    """Asymptotic p of H0: difference = `null`. ``greater`` is small when the difference is larger than that.

    Raises ValueError as `tango_z`, and on an unknown alternative.
    """
    check_alternative(alternative)
    z = tango_z(pairs, null)
    if alternative == "two-sided":
        return erfc(abs(z) / sqrt(2))
    return _upper_tail(z if alternative == "greater" else -z)


def tango_interval(pairs: Pairs, level: float | Fraction) -> tuple[float, float]:
    """Score interval of the difference: every δ that the two-sided test does not reject at 1 − level.

    Also where no problem differs, or all do: with w = l = 0 it is ±z²/(n + z²), with w = n it ends at 1. Exchanging the
    arms mirrors it exactly. Raises ValueError unless K = 1 and 0 < level < 1.
    """
    check_binary("tango_interval", pairs.samples)
    check_inside("level", float(level), 0, 1)
    z = -NormalDist().inv_cdf(float((1 - level) / 2))
    n, won, lost = pairs.n, pairs.wins, pairs.losses
    return -_upper(n, lost, won, z), _upper(n, won, lost, z)


def non_inferiority(pairs: Pairs, margin: float | Fraction) -> tuple[float, float]:
    """(z, p) of H0: the candidate is worse by `margin` or more. p is one-sided: it is at most α exactly when the
    lower end of `tango_interval` at level 1 − 2α lies above −margin. Raises ValueError unless K = 1 and 0 < margin < 1.

    Several cells are non-inferior when each is, at the same α: that is an intersection–union test, whose p is the
    largest of theirs (`multiplicity.all_of`), and needs no correction.
    """
    check_inside("margin", float(margin), 0, 1)
    z = tango_z(pairs, -margin)
    return z, _upper_tail(z)


def _z(n: int, won: int, lost: int, delta: float) -> float:
    if delta < 0:  # the mirrored problem, so that the quadratic has one case only
        return -_z(n, lost, won, -delta)
    deviation = won - lost - n * delta
    variance = n * (2 * _share_lost(n, won, lost, delta) + delta * (1 - delta))
    if deviation == 0:
        return 0.0
    return deviation / sqrt(variance) if variance > 0 else inf if deviation > 0 else -inf


def _share_lost(n: int, won: int, lost: int, delta: float) -> float:
    """p̃01 for δ ≥ 0."""
    a, b, c = 2 * n, -won - lost + (2 * n - won + lost) * delta, -lost * delta * (1 - delta)
    root = sqrt(b * b - 4 * a * c)
    # Of the two forms of the larger root, the one that subtracts nothing.
    return (root - b) / (2 * a) if b <= 0 else -2 * c / (root + b)


@lru_cache(maxsize=1024)
def _upper(n: int, won: int, lost: int, z: float) -> float:
    """Largest δ with z(δ) ≥ −z, to the last digit."""
    low, high = (won - lost) / n, 1.0
    while low < (middle := (low + high) / 2) < high:
        if _z(n, won, lost, middle) >= -z:
            low = middle
        else:
            high = middle
    return high if high == 1 else low


def _upper_tail(z: float) -> float:
    """P(Z ≥ z): erfc keeps its relative accuracy where 1 − Φ would be lost."""
    return erfc(z / sqrt(2)) / 2
