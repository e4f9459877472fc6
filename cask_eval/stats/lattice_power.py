"""Power with several samples per problem, by simulation.

The model. Problem i has its own chances (π⁺, π⁰, π⁻)ᵢ that a pair of single samples, one of either arm, favours the
candidate, neither, or the baseline; they are Dirichlet with mean ((q + δ)/2, 1 − q, (q − δ)/2), and K·dᵢ is wins minus
losses of K such pairs. The one further parameter is the correlation ρ of two samples' differences within a problem:
Var(dᵢ) = (q − δ²)·(1 + (K − 1)ρ)/K. ρ = 0: samples differ by chance alone, and K of them are worth K problems. ρ = 1: a
problem always comes out the same, and more samples add nothing. With K = 1 it is the trinomial of `power.exact_power`.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from cask_eval.stats import _draws
from cask_eval.stats._checks import Alternative, check_alternative, check_inside
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.procedures import PROCEDURES


def variance_factor(samples: int, correlation: float) -> float:
    """(1 + (K − 1)ρ)/K: what K samples leave of the variance of one; 1 over it is how many times n they are worth."""
    return (1 + (samples - 1) * correlation) / samples


def difference_pmf(discordance: float, difference: float, samples: int, correlation: float) -> np.ndarray:
    """[2K+1]: probability of K·d = −K … K under the model: a Dirichlet-multinomial, summed over ties.

    Raises ValueError unless |δ| ≤ q, 0 < q ≤ 1, K ≥ 1 and 0 ≤ ρ ≤ 1.
    """
    from scipy.special import gammaln, xlogy

    _check(discordance, difference, samples, correlation)
    means = np.array([(discordance + difference) / 2, 1 - discordance, (discordance - difference) / 2])
    out = np.zeros(2 * samples + 1)
    if correlation == 1:
        out[[2 * samples, samples, 0]] = means
        return out
    wins, losses = np.meshgrid(np.arange(samples + 1), np.arange(samples + 1), indexing="ij")
    possible = wins + losses <= samples
    counts = np.stack([wins[possible], samples - wins[possible] - losses[possible], losses[possible]])  # [3, outcomes]
    log = gammaln(samples + 1) - gammaln(counts + 1).sum(axis=0)
    if correlation == 0:
        log = log + xlogy(counts, means[:, None]).sum(axis=0)
    else:
        total = 1 / correlation - 1
        weights = np.maximum(means * total, 1e-300)[:, None]  # a chance of 0 stays 0: gammaln is finite, counts are not
        log = log + gammaln(total) - gammaln(total + samples)
        log = log + (gammaln(counts + weights) - gammaln(weights)).sum(axis=0)
    np.add.at(out, samples + counts[0] - counts[2], np.exp(log))
    return out / out.sum()


def simulated_power(
    n: int,
    discordance: float,
    difference: float,
    alpha: float,
    samples: int,
    correlation: float,
    procedure: str = "sign_flip",
    alternative: Alternative = "two-sided",
    *,
    seed: int = 0,
    replicates: int = 1000,
) -> tuple[float, float]:
    """(power, its standard error): share of simulated studies of n problems in which `procedure` rejects at `alpha` in
    the direction of the difference; with a difference of 0, in either direction, which is the size of the test.

    Raises ValueError as `difference_pmf`, on an unknown alternative, n < 1 or replicates < 1, and KeyError on an
    unknown procedure.
    """
    check_alternative(alternative)
    check_inside("alpha", alpha, 0, 1)
    if n < 1 or replicates < 1:
        raise ValueError(f"n is {n} and replicates {replicates}; at least one of each is needed")
    test, pmf = PROCEDURES[procedure], difference_pmf(discordance, difference, samples, correlation)
    # The last bound is left out, so that rounding cannot put a draw beyond the lattice.
    bounds, bits, rejected = np.cumsum(pmf)[:-1], _draws.generator(seed), 0
    for rows in _draws.blocks(replicates, n):
        drawn = np.searchsorted(bounds, _draws.uniforms(bits, rows, n), side="right")
        for row in drawn:
            pairs = Pairs(samples, tuple(np.bincount(row, minlength=2 * samples + 1).tolist()))
            towards = alternative != "two-sided" or pairs.total * difference > 0 or difference == 0
            rejected += bool(towards and test(pairs, alternative) <= alpha)
    share = rejected / replicates
    return share, sqrt(share * (1 - share) / replicates)


def _check(discordance: float, difference: float, samples: int, correlation: float) -> None:
    if not 0 < discordance <= 1 or abs(difference) > discordance:
        raise ValueError(f"a difference of {difference} cannot come from discordance {discordance}")
    if samples < 1:
        raise ValueError(f"samples is {samples}; at least one is needed")
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation is {correlation}; it must lie between 0 and 1")
