"""Sums under all sign patterns, or under random ones: what the observed sums are compared with.

One sign per problem is shared by all cells, because a problem's outcomes in different cells depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cask_eval.stats import _draws
from cask_eval.stats.whole import signed_sums

#: Up to this many problems that differ, every pattern is looked at: 2²⁰ is about a million.
ENUMERATED = 20


@dataclass(frozen=True)
class Reference:
    """Sign patterns of the differences `integers` [cells, n]. Problems that differ in no cell take no part."""

    integers: np.ndarray
    replicates: int
    seed: int

    def __post_init__(self):
        if self.replicates < 1:
            raise ValueError(f"replicates is {self.replicates}; at least one is needed")
        object.__setattr__(self, "integers", self.integers[:, self.integers.any(axis=0)])

    @property
    def enumerated(self) -> bool:
        return self.integers.shape[1] <= ENUMERATED

    def sums(self) -> Iterator[np.ndarray]:
        """Blocks [rows, cells] of Σ sign·difference: 2ⁿ rows in all, or `replicates`."""
        for signs in self._patterns():
            yield signed_sums(signs, self.integers)

    def p(self, reached: np.ndarray) -> np.ndarray:
        """p from how many sums reach the observed one: their share of all patterns, or (1 + #)/(B + 1), which counts
        the observed pattern among the random ones (Davison & Hinkley 1997, ch. 4)."""
        return reached / 2 ** self.integers.shape[1] if self.enumerated else (1 + reached) / (1 + self.replicates)

    def _patterns(self) -> Iterator[np.ndarray]:
        n, width = self.integers.shape[1], max(self.integers.shape)
        if not self.enumerated:
            bits = _draws.generator(self.seed)
            for rows in _draws.blocks(self.replicates, width):
                yield _draws.signs(bits, rows, n)
            return
        first = 0
        for rows in _draws.blocks(2**n, width):
            number = np.arange(first, first + rows)[:, None]
            yield 1.0 - 2.0 * (number >> np.arange(n) & 1)
            first += rows
