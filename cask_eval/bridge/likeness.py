"""How alike two token sequences are: longest common subsequence, matching blocks, common prefix, repetition."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Sequence
from fractions import Fraction

__all__ = ["common_prefix", "lcs", "lcs_ratio", "prefix_ratio", "repetition", "sequence_ratio"]

#: Length of the n-grams whose repeats are counted (Welleck et al. 2020, arXiv:1908.04319: seq-rep-4).
NGRAM = 4


def lcs(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, by Hyyrö's bit-parallel form of the usual table (Hyyrö 2004, "Bit-
    parallel LCS-length computation revisited"): a row of it is the zero bits of one long integer."""
    where: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        met = row & where.get(token, 0)
        row = ((row + met) | (row - met)) & full
    return len(a) - row.bit_count()


def lcs_ratio(a: Sequence[Hashable], b: Sequence[Hashable]) -> Fraction:
    """LCS over the longer length; 1 for two empty sequences."""
    longer = max(len(a), len(b))
    return Fraction(lcs(a, b), longer) if longer else Fraction(1)


def sequence_ratio(a: Sequence[Hashable], b: Sequence[Hashable]) -> Fraction:
    """2M over both lengths, M tokens in matching blocks: difflib's ratio (Ratcliff & Obershelp) with its defaults, so
    that in sequences of 200 tokens and more, tokens that make up over 1 % start no block. It is no LCS and, depending
    on the blocks found first, not symmetric. 1 for two empty sequences."""
    together = len(a) + len(b)
    blocks = difflib.SequenceMatcher(None, a, b).get_matching_blocks()
    return Fraction(2 * sum(block.size for block in blocks), together) if together else Fraction(1)


def common_prefix(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many elements are the same from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def prefix_ratio(a: Sequence[Hashable], b: Sequence[Hashable]) -> Fraction:
    """`common_prefix` over the longer length; 1 for two empty sequences."""
    longer = max(len(a), len(b))
    return Fraction(common_prefix(a, b), longer) if longer else Fraction(1)


def repetition(a: Sequence[Hashable]) -> Fraction:
    """Share of the 4-grams that have occurred before; 0 where there are none."""
    grams = [tuple(a[i : i + NGRAM]) for i in range(len(a) - NGRAM + 1)]
    return Fraction(len(grams) - len(set(grams)), len(grams)) if grams else Fraction(0)
