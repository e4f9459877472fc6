"""Counts of the binomial distribution with p = ½, in whole numbers."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1024)
def subsets_up_to(k: int, d: int) -> int:
    """Σ_{i ≤ k} C(d, i): subsets of d things with at most k members, out of 2^d."""
    term = out = 1 if k >= 0 else 0
    for i in range(min(k, d)):
        term = term * (d - i) // (i + 1)
        out += term
    return out
