"""Paired differences on their lattice, in integers.

With K samples a problem's difference is d = (candidate right − baseline right)/K, one of {−K … K}/K. Only K·d is
kept: a float mean such as 0.1 + 0.2 − 0.3 would fall on the wrong side of zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import sqrt


@dataclass(frozen=True)
class Pairs:
    """How many problems have which difference. counts: 2K+1 counts, `counts[K + j]` problems with K·d = j.

    Raises ValueError when there is no problem, a count is negative, or the length is not 2K+1.
    """

    samples: int
    counts: tuple[int, ...]

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; at least one is needed")
        if len(self.counts) != 2 * self.samples + 1:
            raise ValueError(f"{self.samples} samples need {2 * self.samples + 1} counts, not {len(self.counts)}")
        if min(self.counts) < 0:
            raise ValueError(f"counts {self.counts} include a negative one")
        if not sum(self.counts):
            raise ValueError("there is no pair: at least one problem is needed")

    @classmethod
    def from_differences(cls, differences: Iterable[int], samples: int = 1) -> Pairs:
        """From K·d of each problem. Raises ValueError on a difference outside −K … K."""
        counts = [0] * (2 * samples + 1)
        for d in differences:
            if not -samples <= d <= samples:
                raise ValueError(f"difference {d} is outside −{samples} … {samples}")
            counts[d + samples] += 1
        return cls(samples, tuple(counts))

    @classmethod
    def binary(cls, n: int, wins: int, losses: int) -> Pairs:
        """One sample per problem: `wins` only the candidate has right, `losses` only the baseline."""
        return cls(1, (losses, n - wins - losses, wins))

    @cached_property
    def n(self) -> int:
        return sum(self.counts)

    @property
    def losses(self) -> int:
        """Problems on which the candidate is worse."""
        return sum(self.counts[: self.samples])

    @property
    def ties(self) -> int:
        return self.counts[self.samples]

    @property
    def wins(self) -> int:
        """Problems on which the candidate is better."""
        return sum(self.counts[self.samples + 1 :])

    @property
    def total(self) -> int:
        """S = Σ K·d."""
        return sum(j * c for j, c in enumerate(self.counts, -self.samples))

    @property
    def difference(self) -> Fraction:
        """Mean difference in accuracy, candidate minus baseline."""
        return Fraction(self.total, self.n * self.samples)

    @property
    def standard_error(self) -> float:
        """√(Σ(d − d̄)²/n²), the population formula. It is exactly the standard deviation of the bootstrap
        distribution of the mean (Efron & Tibshirani 1993, ch. 5); the sample formula is √(n/(n−1)) larger."""
        square = sum(j * j * c for j, c in enumerate(self.counts, -self.samples))
        return sqrt(Fraction(self.n * square - self.total**2, self.n)) / (self.n * self.samples)

    def swap(self) -> Pairs:
        """The same problems with the arms exchanged."""
        return Pairs(self.samples, self.counts[::-1])
