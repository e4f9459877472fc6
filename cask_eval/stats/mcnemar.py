"""McNemar's test on the pairs that differ, exact and mid-p, in integer arithmetic.

Given w + l problems on which exactly one arm is right, wins are Binomial(w + l, ½) when the arms are equally good.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb

from cask_eval.stats._binomial import subsets_up_to
from cask_eval.stats._checks import Alternative, check_alternative, check_binary
from cask_eval.stats.pairs import Pairs


def mcnemar_exact(pairs: Pairs, alternative: Alternative = "two-sided") -> float:
    """Exact conditional p (McNemar 1947; Fagerland, Lydersen & Laake 2013, "exact conditional test").

    ``two-sided`` is min(1, 2·P(X ≤ min(w, l))); ``greater`` is P(X ≥ w), small when the candidate is better;
    ``less`` is P(X ≤ w). Raises ValueError unless K = 1.
    """
    check_alternative(alternative)
    check_binary("mcnemar_exact", pairs.samples)
    w, l = pairs.wins, pairs.losses
    if alternative == "two-sided":
        return float(min(Fraction(1), 2 * _lower(min(w, l), w + l)))
    return float(_lower(l if alternative == "greater" else w, w + l))


def mcnemar_midp(pairs: Pairs, alternative: Alternative = "two-sided") -> float:
    """Exact p less half the probability of what was observed, on each side that counts (Fagerland, Lydersen & Laake
    2013, "mid-p test"). With w = l the two-sided value is 1; their supplement prints 1 − P(X = w)/2 there, on which no
    decision depends. Raises ValueError unless K = 1.
    """
    check_alternative(alternative)
    check_binary("mcnemar_midp", pairs.samples)
    w, l = pairs.wins, pairs.losses
    if alternative == "two-sided":
        return 1.0 if w == l else float(2 * _lower(min(w, l), w + l) - _point(min(w, l), w + l))
    side = l if alternative == "greater" else w
    return float(_lower(side, w + l) - _point(side, w + l) / 2)


def _lower(k: int, d: int) -> Fraction:
    """P(X ≤ k), X ~ Binomial(d, ½)."""
    return Fraction(subsets_up_to(k, d), 2**d)


def _point(k: int, d: int) -> Fraction:
    """P(X = k), X ~ Binomial(d, ½)."""
    return Fraction(comb(d, k), 2**d)
