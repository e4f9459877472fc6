"""What trials are judged by, as one exact difference per problem: positive where the candidate is better.

Accuracy compares right answers, which lie on a lattice: `Counts`. The fidelity endpoints compare real numbers of two
replays of the same tokens: `Reals`. Both answer the same questions, so the analysis asks no further which it has.

Direction: a difference is an improvement. Of nll and kl, less is better, so theirs is baseline minus candidate.

A replay without a result (failed or missing) counts with the worst value that any trial of the comparison has, as a
failed trial counts as wrong for accuracy. Where neither arm has a result, or the endpoint does not exist for one of
them because nothing was compressed (`_after`), the pair is left out on both sides. Samples are paired first, since both
arms replay the same tokens, and then averaged per problem; a problem without any pair left is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import sqrt
from typing import Protocol

from cask_eval.decide.trial import Followed
from cask_eval.fidelity import AFTER, ENDPOINTS
from cask_eval.records.model import FidelityRecord
from cask_eval.stats._checks import Alternative
from cask_eval.stats.bootstrap import B, percentile_interval
from cask_eval.stats.off_lattice import bootstrap_interval, bootstrap_p, sign_flip_reals
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.procedures import PROCEDURES, p_values
from cask_eval.stats.t_interval import t_test
from cask_eval.stats.tango import non_inferiority

# A score's unit: the exact mean of many problems and samples has more digits than the ledger takes.
BILLIONTH = 10**9

# As many draws as put this many of them beyond the level of one comparison.
BEYOND = 20


class Improvement(Protocol):
    """One comparison. n: problems compared; wins, losses: on which the candidate is better, or worse. difference: mean
    improvement; row: improvement by problem in the order of the split, 0 where a problem is left out, in any unit."""

    n: int
    samples: int
    wins: int
    losses: int
    ties: int
    difference: Fraction
    standard_error: float
    row: list[int] | list[Fraction]

    def p(self, procedure: str, alternative: Alternative) -> float: ...

    def tests(self, alternative: Alternative) -> dict[str, float]:
        """Every procedure that applies, by name."""

    def interval(self, level: Fraction) -> tuple[float | Fraction, float | Fraction]: ...

    def non_inferior(self, margin: Fraction) -> tuple[float | None, float]:
        """(z, p) of a loss of `margin` or more, z being None where the test has none."""


class Counts:
    """Right answers: every test is exact. row: K·d of each problem."""

    def __init__(self, row: list[int], samples: int):
        self.row, self.samples = row, samples
        self.pairs = pairs = Pairs.from_differences(row, samples)
        self.n, self.wins, self.losses, self.ties = pairs.n, pairs.wins, pairs.losses, pairs.ties
        self.difference, self.standard_error = pairs.difference, pairs.standard_error

    def p(self, procedure: str, alternative: Alternative) -> float:
        return PROCEDURES[procedure](self.pairs, alternative)

    def tests(self, alternative: Alternative) -> dict[str, float]:
        return p_values(self.pairs, alternative)

    def interval(self, level: Fraction) -> tuple[Fraction, Fraction]:
        return percentile_interval(self.pairs, level)

    def non_inferior(self, margin: Fraction) -> tuple[float, float]:
        return non_inferiority(self.pairs, margin)


@dataclass(frozen=True)
class Reals:
    """Real improvements of the `kept` problems, of all `problems`. What is drawn depends on `seed` alone. Without any
    problem left every p is 1, and there is no interval."""

    kept: Mapping[str, Fraction]
    problems: Sequence[str]
    samples: int
    seed: int
    draws: int = B
    values: list[Fraction] = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "values", [self.kept[p] for p in self.problems if p in self.kept])

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def wins(self) -> int:
        return sum(d > 0 for d in self.values)

    @property
    def losses(self) -> int:
        return sum(d < 0 for d in self.values)

    @property
    def ties(self) -> int:
        return sum(d == 0 for d in self.values)

    @cached_property
    def difference(self) -> Fraction:
        return sum(self.values, Fraction()) / max(1, self.n)

    @cached_property
    def standard_error(self) -> float:
        """√(Σ(d − d̄)²)/n, as `Pairs.standard_error`."""
        return sqrt(sum((d - self.difference) ** 2 for d in self.values)) / max(1, self.n)

    @property
    def row(self) -> list[Fraction]:
        return [self.kept.get(p, Fraction()) for p in self.problems]

    def p(self, procedure: str, alternative: Alternative) -> float:
        if not self.values:
            return 1.0
        drawn = {"seed": self.seed, "replicates": self.draws}
        if procedure == "sign_flip":
            return sign_flip_reals(self.values, alternative, **drawn)[0]
        if procedure == "paired_bootstrap":
            return bootstrap_p(self.values, alternative, **drawn)
        if procedure == "t_test":
            return t_test(self.values, alternative)
        raise KeyError(procedure)

    def tests(self, alternative: Alternative) -> dict[str, float]:
        names = ["sign_flip", "paired_bootstrap"] + ["t_test"] * (self.n > 1)
        return {name: self.p(name, alternative) for name in names}

    def interval(self, level: Fraction) -> tuple[float, float] | None:
        if not self.values:
            return None
        return bootstrap_interval(self.values, level, seed=self.seed, replicates=self.draws)

    def non_inferior(self, margin: Fraction) -> tuple[None, float]:
        """The bootstrap test of a mean of −margin or less; the lower end of the percentile interval at 1 − 2α lies
        above −margin when it rejects at α."""
        if not self.values:
            return None, 1.0
        moved = [d + margin for d in self.values]
        return None, bootstrap_p(moved, "greater", seed=self.seed, replicates=self.draws)


@dataclass(frozen=True)
class Replays:
    """Two arms' replays of the same references.

    improvements: problem → mean improvement over its pairs; complete: the same without trials that left no result.
    means: problem → (baseline's, candidate's) mean value over the same pairs. excluded: pairs left out because the
    endpoint does not exist for one of them; lost: trials that left no result, of either arm; void: pairs of which
    neither did."""

    improvements: dict[str, Fraction]
    complete: dict[str, Fraction]
    means: dict[str, tuple[Fraction, Fraction]]
    excluded: int
    lost: tuple[int, int]
    void: int


class Replayed(Protocol):
    """A trial as far as it is compared here."""

    sample: int
    fidelity: FidelityRecord | Followed | None


def pair(
    endpoint: str, baseline: Mapping[str, Sequence[Replayed]], candidate: Mapping[str, Sequence[Replayed]], samples: int
) -> Replays:
    """The comparison of two arms, given as problem → trials; every problem of the split is a key of both."""
    sign = 1 if ENDPOINTS[endpoint.removesuffix(AFTER)] else -1
    sides = [{(p, r.sample): r for p, rs in arm.items() for r in rs} for arm in (baseline, candidate)]
    found = [{k: r.fidelity.endpoint(endpoint) for k, r in side.items() if r.fidelity} for side in sides]
    known = [v for side in found for v in side.values() if v is not None]
    worst = (min if sign > 0 else max)(known, default=Fraction())
    improvements, complete, means, excluded, lost, void = {}, {}, {}, 0, [0, 0], 0
    for problem in baseline:
        kept, whole = [], []
        for key in ((problem, s) for s in range(samples)):
            absent = [key not in side for side in found]
            lost = [n + a for n, a in zip(lost, absent, strict=True)]
            values = [worst if gone else side[key] for gone, side in zip(absent, found, strict=True)]
            if all(absent):
                void += 1
            elif None in values:
                excluded += 1
            else:
                kept.append(values)
                whole += [] if any(absent) else [values]
        for rows, out in ((kept, improvements), (whole, complete)):
            if rows:
                out[problem] = sign * sum((c - b for b, c in rows), Fraction()) / len(rows)
        if kept:
            means[problem] = tuple(sum(column, Fraction()) / len(kept) for column in zip(*kept, strict=True))
    return Replays(improvements, complete, means, excluded, (lost[0], lost[1]), void)


def score(found: Replays) -> Fraction:
    """A configuration's dev score: its mean improvement over the baseline, rounded to a billionth; 0 where nothing can
    be compared."""
    values = list(found.improvements.values())
    mean = sum(values, Fraction()) / max(1, len(values))
    return Fraction(round(mean * BILLIONTH), BILLIONTH)


def draws(level: Fraction) -> int:
    """How many random draws resolve a level: 9,999, or ten, or a hundred times as many."""
    count = B
    while (count + 1) * level < BEYOND and count < 999_999:
        count = 10 * count + 9
    return count
