"""Joint adjustment over cells by the greatest statistic (Westfall & Young 1993, ch. 2 and algorithm 4.1).

Cells that share problems depend on each other; Bonferroni and Holm guard against the worst dependence there could be.
Here every problem gets one sign, shared by all cells, and a cell's statistic is T = S/√Σ(K·d)², its sum over the
standard deviation that the signs give it. p is the probability that the greatest T of the family reaches the cell's
own. With one cell it is the sign-flip test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cask_eval.stats._checks import Alternative, check_alternative
from cask_eval.stats.bootstrap import B
from cask_eval.stats.reference import Reference
from cask_eval.stats.whole import Real, total, whole


@dataclass(frozen=True)
class MaxT:
    """Values by cell, in the order given; an absent cell has 1 everywhere.

    own: each cell's p, not adjusted. single_step: against the greatest T of all cells. step_down: against the greatest
    of the cells that are no more extreme, made monotone; never above single_step, and the one to report. enumerated:
    whether every sign pattern was looked at, so that nothing depends on the seed.
    """

    own: list[float]
    single_step: list[float]
    step_down: list[float]
    enumerated: bool


def max_t(
    cells: Sequence[Sequence[Real] | np.ndarray | None],
    alternative: Alternative = "two-sided",
    *,
    m: int | None = None,
    seed: int = 0,
    replicates: int = B,
) -> MaxT:
    """Adjusted p of every cell.

    cells: [cells, problems] differences, the same problems in the same order, such as K·d; 0 where a cell does not have
    a problem. Each row has its own unit. m is the registered family's size, at least the number of cells. None, and a
    member that is not listed, is absent: it has no differences to flip, so it counts as p = 1, and every other cell's
    own p is added to its adjusted one, as Bonferroni would, lest losing a cell make the others easier. Up to 20
    problems that differ all patterns are enumerated; beyond, `replicates` of them are drawn, and p = (1 + #)/(B + 1).

    Raises ValueError on an unknown alternative, rows of unequal length, values that are no numbers, or m too small.
    """
    check_alternative(alternative)
    family = len(cells) if m is None else m
    if family < len(cells):
        raise ValueError(f"the family has {family} members, but {len(cells)} cells were given")
    present = [i for i, row in enumerate(cells) if row is not None]
    if len({len(cells[i]) for i in present}) > 1:
        raise ValueError("cells have different numbers of problems; each row must list the same problems")
    if not present:
        ones = [1.0] * len(cells)
        return MaxT(ones, ones, ones, True)

    rows = np.stack([whole(v.tolist() if isinstance(v, np.ndarray) else v)[0] for v in (cells[i] for i in present)])
    reference = Reference(-rows if alternative == "less" else rows, replicates, seed)
    own, single, step = _compare(reference, alternative == "two-sided", family - len(present))

    def filled(values: np.ndarray) -> list[float]:
        found = dict(zip(present, values.tolist()))
        return [found.get(i, 1.0) for i in range(len(cells))]

    return MaxT(filled(own), filled(single), filled(step), reference.enumerated)


def _compare(reference: Reference, two_sided: bool, absent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """own, single-step and step-down p, each [cells]."""
    variance = (reference.integers.astype(np.float64) ** 2).sum(axis=1)
    variance[variance == 0] = 1  # a cell without differences: T is 0

    def statistic(sums: np.ndarray) -> np.ndarray:
        # T², with the sign of S when one side counts: no root is taken, so that on the lattice a quotient of integers
        # is rounded once, and T that are equal in two cells compare as equal.
        return sums * (sums if two_sided else np.abs(sums)) / variance

    observed = statistic(total(reference.integers))
    order = np.argsort(-observed, kind="stable")
    t = observed[order]
    own, single, step = (np.zeros(len(t), dtype=np.int64) for _ in range(3))
    for sums in reference.sums():
        found = statistic(sums)[:, order]
        greatest = np.maximum.accumulate(found[:, ::-1], axis=1)[:, ::-1]  # of this cell and all that rank below
        own += (found >= t).sum(axis=0)
        single += (greatest[:, :1] >= t).sum(axis=0)
        step += (greatest >= t).sum(axis=0)

    p = reference.p(own)
    adjusted = [p, *(np.minimum(1, reference.p(count) + absent * p) for count in (single, step))]
    adjusted[2] = np.maximum.accumulate(adjusted[2])
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return tuple(values[back] for values in adjusted)
