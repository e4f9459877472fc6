"""What a study of n problems can see: one binary outcome per problem and arm.

q is the discordance, the share of problems on which exactly one arm is right (p10 + p01); δ = p10 − p01 is the
difference in accuracy. Several samples per problem only sharpen this.
"""

from __future__ import annotations

from math import ceil, sqrt
from statistics import NormalDist

import numpy as np

from cask_eval.stats._checks import Alternative, check_alternative, check_inside
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.procedures import PROCEDURES

# Numbers of discordant pairs less likely than this are left out of a sum over them.
NEGLIGIBLE = 1e-14


def expected_discordant(n: int, discordance: float) -> float:
    """n·q: how many problems should separate the arms."""
    return n * discordance


def connor_sample_size(
    difference: float, discordance: float, alpha: float, power: float = 0.8, alternative: Alternative = "two-sided"
) -> int:
    """Problems needed: ⌈(z₁₋α/₂·√q + z_power·√(q − δ²))²/δ²⌉ (Connor 1987, Biometrics 43); z₁₋α when one-sided.

    Raises ValueError unless 0 < |δ| ≤ q ≤ 1, 0 < α < 1 and ½ ≤ power < 1.
    """
    _check_design(discordance, alpha, power, alternative)
    delta = abs(difference)
    if not 0 < delta <= discordance:
        raise ValueError(
            f"a difference of {difference} cannot come from discordance {discordance}; "
            "it must not be zero or larger than the discordance"
        )
    a, b = _z(alpha, power, alternative)
    return ceil((a * sqrt(discordance) + b * sqrt(discordance - delta**2)) ** 2 / delta**2)


def connor_mde(
    n: int, discordance: float, alpha: float, power: float = 0.8, alternative: Alternative = "two-sided"
) -> float | None:
    """Connor's formula solved for δ: what n problems detect when the normal approximation holds.

    √n·δ − z₁₋α/₂·√q = z_power·√(q − δ²) is a quadratic in δ. None when even δ = q, every flip in one direction, is
    too small. Raises ValueError as `connor_sample_size`, and unless n ≥ 1.
    """
    _check_design(discordance, alpha, power, alternative, n)
    a, b = _z(alpha, power, alternative)
    inside = n + b * b - a * a
    if inside < 0:
        return None
    delta = sqrt(discordance) * (a * sqrt(n) + b * sqrt(inside)) / (n + b * b)
    return delta if delta <= discordance else None


def mde(
    n: int, discordance: float, alpha: float, power: float = 0.8, alternative: Alternative = "two-sided"
) -> float | None:
    """Smallest difference that exact McNemar detects with the given power, by bisection of `exact_power`, which
    grows with δ. It lies 0.1 to 0.2 points above `connor_mde`, because the exact test does not use its whole level.
    None when even δ = q is too small. Raises ValueError as `connor_mde`.
    """
    _check_design(discordance, alpha, power, alternative, n)
    pairs, critical = _pairs(n, discordance), _critical(n, alpha, alternative)
    low, high = 0.0, discordance
    if _power(pairs, critical, discordance, high) < power:
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        if _power(pairs, critical, discordance, middle) < power:
            low = middle
        else:
            high = middle
    return high


def exact_power(
    n: int,
    discordance: float,
    difference: float,
    alpha: float,
    alternative: Alternative = "two-sided",
    procedure: str = "mcnemar_exact",
) -> float:
    """Probability that `procedure` rejects in the direction of the difference; for a one-sided test, in the direction
    it looks at. With δ = 0 a two-sided test rejects in either direction twice as often, which is its size.

    Σ_d Binomial(d; n, q)·P(reject | d): the number of discordant pairs is random too (Connor 1987). Raises
    ValueError unless |δ| ≤ q ≤ 1, 0 < α < 1 and n ≥ 1, and KeyError on an unknown procedure.
    """
    _check_design(discordance, alpha, 0.5, alternative, n)
    if abs(difference) > discordance:
        raise ValueError(f"a difference of {difference} cannot come from discordance {discordance}")
    towards = {"two-sided": abs(difference), "greater": difference, "less": -difference}[alternative]
    pairs = _pairs(n, discordance)
    if procedure in ("mcnemar_exact", "sign_flip"):
        return _power(pairs, _critical(n, alpha, alternative), discordance, towards)
    likely = np.flatnonzero(pairs > NEGLIGIBLE)
    critical = np.full(n + 1, -1)
    critical[likely] = _most_losses(procedure, n, likely.tolist(), alpha, alternative)
    return _power(pairs, critical, discordance, towards)


def _most_losses(procedure: str, n: int, discordant: list[int], alpha: float, alternative: str) -> list[int]:
    """For each number of discordant pairs the most losses with which the test rejects for the candidate; −1 if none.
    Every procedure's p grows as a win becomes a loss, and each search begins where the last one ended."""
    test, side = PROCEDURES[procedure], "two-sided" if alternative == "two-sided" else "greater"
    out, k = [], -1
    for d in discordant:
        most = (d - 1) // 2 if side == "two-sided" else d
        while k < most and test(Pairs.binary(n, d - k - 1, k + 1), side) <= alpha:
            k += 1
        while k >= 0 and test(Pairs.binary(n, d - k, k), side) > alpha:
            k -= 1
        out.append(k)
    return out


def _pairs(n: int, discordance: float) -> np.ndarray:
    """[n+1]: probability of d discordant pairs."""
    from scipy.special import gammaln, xlog1py, xlogy

    d = np.arange(n + 1)
    choose = gammaln(n + 1) - gammaln(d + 1) - gammaln(n - d + 1)
    return np.exp(choose + xlogy(d, discordance) + xlog1py(n - d, -discordance))


def _power(pairs: np.ndarray, critical: np.ndarray, discordance: float, difference: float) -> float:
    """Rejections in the direction of `difference`: few enough discordant pairs point the other way."""
    from scipy.special import bdtr

    d = np.flatnonzero(critical >= 0)
    against = (discordance - difference) / (2 * discordance)
    return float(pairs[d] @ bdtr(critical[d], d, against))


def _critical(n: int, alpha: float, alternative: str) -> np.ndarray:
    return critical_losses(n, alpha / 2 if alternative == "two-sided" else alpha)


def critical_losses(n: int, tail: float) -> np.ndarray:
    """[n+1]: for d = 0 … n discordant pairs, the largest k with P(X ≤ k) ≤ tail, X ~ Binomial(d, ½); −1 if none."""
    from scipy.special import bdtr

    out, k = np.empty(n + 1, dtype=np.int64), -1
    for d in range(n + 1):
        # One more pair raises the critical value by one at most, so a single step is enough.
        if bdtr(k + 1, d, 0.5) <= tail:
            k += 1
        out[d] = k
    return out


def _check_design(discordance: float, alpha: float, power: float, alternative: str, n: int = 1) -> None:
    check_alternative(alternative)
    check_inside("alpha", alpha, 0, 1)
    if not 0 < discordance <= 1:
        raise ValueError(f"discordance is {discordance}; it must be above 0 and at most 1")
    if not 0.5 <= power < 1:
        raise ValueError(f"power is {power}; it must be at least 0.5 and below 1")
    if n < 1:
        raise ValueError(f"n is {n}; at least one problem is needed")


def _z(alpha: float, power: float, alternative: str) -> tuple[float, float]:
    normal = NormalDist()
    return normal.inv_cdf(1 - (alpha / 2 if alternative == "two-sided" else alpha)), normal.inv_cdf(power)
