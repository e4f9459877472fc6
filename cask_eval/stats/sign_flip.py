"""The paired permutation test by signs, exact on the lattice.

When the arms are exchangeable within each problem, every difference K·d keeps its size and has either sign with
probability ½, so 2^D sign patterns of the D problems that differ are equally likely (Fisher 1935; Davison & Hinkley
1997, ch. 4.3). With one sample per problem this is McNemar's exact test.

All patterns are counted, in whole numbers. If U is the sum of the sizes that got a plus, S = 2U − Σ|K·d|, and the
counts of U are the coefficients of Π (1 + x^|K·d|). The polynomial is kept in one integer, as its value at x = 2^bits
with room for 2^D in every place: multiplying by (1 + x^m) is one shift and one addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import gcd

from cask_eval.stats._binomial import subsets_up_to
from cask_eval.stats._checks import Alternative, check_alternative
from cask_eval.stats.pairs import Pairs


def sign_flip(pairs: Pairs, alternative: Alternative = "two-sided") -> float:
    """Exact p: the share of sign patterns whose S is at least as extreme as the observed one.

    ``greater`` is P(S* ≥ S), small when the candidate is better; ``less`` is P(S* ≤ S); ``two-sided`` is P(|S*| ≥ |S|),
    which by symmetry is min(1, 2·min of both). Raises ValueError on an unknown alternative.
    """
    return count_patterns([j for j, c in enumerate(pairs.counts, -pairs.samples) for _ in range(c)], alternative)


def count_patterns(differences: Sequence[int], alternative: Alternative) -> float:
    """`sign_flip` of integer differences [n], one per problem."""
    check_alternative(alternative)
    sizes = [abs(d) for d in differences if d]
    won = sum(d for d in differences if d > 0)
    lost = sum(sizes) - won
    side = {"two-sided": max(won, lost), "greater": won, "less": lost}[alternative]
    p = Fraction(patterns_reaching(sizes, side), 2 ** len(sizes))
    return float(min(Fraction(1), 2 * p) if alternative == "two-sided" else p)


def patterns_reaching(sizes: Sequence[int], won: int) -> int:
    """How many subsets of `sizes` [D], positive integers, sum to at least `won`, out of 2^D."""
    unit, d = gcd(*sizes) or 1, len(sizes)
    needed = -(-won // unit)
    if sum(sizes) == unit * d:  # all alike, as with one sample per problem
        return 2**d - subsets_up_to(needed - 1, d)
    bits = _place(d)
    upper = _packed(tuple(sorted(m // unit for m in sizes))) >> bits * needed
    # In base 2^bits a number is congruent to the sum of its digits modulo 2^bits − 1, and that sum, at most 2^D, is
    # smaller than the modulus.
    return upper % ((1 << bits) - 1)


@lru_cache(maxsize=16)
def _packed(sizes: tuple[int, ...]) -> int:
    bits, out = _place(len(sizes)), 1
    for m in sizes:
        out += out << bits * m
    return out


def _place(d: int) -> int:
    """Bits of one coefficient: 2^d must be below 2^bits − 1, also for d = 0."""
    return d + 2
