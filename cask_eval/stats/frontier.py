"""How small a budget is still usable, and whether one method at a small budget beats another at a larger one.

Both are about a grid of budgets over the same problems, paired by problem. A *loss* is how much worse than the ceiling
(the full cache replayed on the same tokens) a problem came out, positive where it is worse.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

import numpy as np

from cask_eval.stats import _draws
from cask_eval.stats._checks import Alternative, check_inside
from cask_eval.stats.bootstrap import B, rank_of
from cask_eval.stats.multiplicity import holm
from cask_eval.stats.off_lattice import bootstrap_interval, sign_flip_reals
from cask_eval.stats.t_interval import t_test
from cask_eval.stats.whole import Real, drawn_sums, total, whole


@dataclass(frozen=True)
class MinimumBudget:
    """estimate: the smallest budget from which on, in the grid, every mean loss is at most ε; None where not even the
    largest is. low, high: its bootstrap interval by problem, None for a budget beyond the grid. shown: the smallest
    budget that is shown to lose less than ε, None without any. p: budget → p of a mean loss of ε or more."""

    estimate: int | None
    low: int | None
    high: int | None
    shown: int | None
    p: dict[int, float]


def minimum_budget(
    losses: Mapping[int, Sequence[Real]],
    epsilon: Real,
    *,
    alpha: Real = Fraction(1, 20),
    seed: int = 0,
    replicates: int = B,
) -> MinimumBudget:
    """The minimum usable budget of one method. `losses`: budget → loss [n] by problem, in one order.

    The interval has level 1 − α: problems are drawn with replacement, the same ones for all budgets, and the estimate
    is formed again; a draw without a usable budget counts as larger than all. `shown` goes down from the largest
    budget and stops at the first whose one-sided t test of "the mean loss is ε or more" does not reach α: a fixed
    sequence needs no correction (Maurer, Hothorn & Lehmacher 1995). The tests rest on nearly normal means, the
    interval does not.

    Raises ValueError when there is no budget, the numbers of problems differ or are below two, ε is not positive, or a
    loss is not finite.
    """
    budgets, table, unit = _grid(losses)
    check_inside("alpha", float(alpha), 0, 1)
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; a loss that is tolerated must be above 0")
    n = table.shape[1]
    most = float(Fraction(epsilon) * n / unit)
    bits, drawn = _draws.generator(seed), []
    for rows in _draws.blocks(replicates, n):
        at = _draws.indices(bits, rows, n)
        drawn.append(_first_usable(np.stack([drawn_sums(at, row) for row in table]), most))
    firsts = np.sort(np.concatenate(drawn))
    rank = rank_of(1 - Fraction(alpha), replicates)
    p = {b: t_test([Fraction(epsilon) - Fraction(x) for x in losses[b]], "greater") for b in budgets}
    shown = None
    for b in reversed(budgets):
        if p[b] > float(alpha):
            break
        shown = b
    at = [*budgets, None]
    (found,) = _first_usable(total(table)[:, None], most)
    return MinimumBudget(at[found], at[firsts[rank - 1]], at[firsts[replicates - rank]], shown, p)


@dataclass(frozen=True)
class Contrast:
    """One method at one budget against another: `first` at budget `one`, `second` at budget `other`. difference: mean
    advantage of the first, with its bootstrap interval; wins, losses: problems that the first has better, worse. p:
    sign flip; adjusted: Holm over all pairs that were looked at. exact: whether p counts all patterns."""

    first: Hashable
    one: int
    second: Hashable
    other: int
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p: float
    adjusted: float
    exact: bool


def crossings(
    values: Mapping[tuple[Hashable, int], Sequence[Real]],
    *,
    level: Real = Fraction(19, 20),
    seed: int = 0,
    replicates: int = B,
) -> list[Contrast]:
    """Whether a method at a smaller budget beats another at a larger one: every such pair, one-sided, in the order of
    `values`. `values`: (method, budget) → value [n] by problem, in one order, more being better.

    Nothing is left out for being unpromising, so the family of the correction is all that is returned. Raises
    ValueError when numbers of problems differ or a value is not finite.
    """
    pairs = [sorted(pair, key=lambda key: key[1]) for pair in combinations(values, 2)]
    wanted = [(a, b) for a, b in pairs if a[0] != b[0] and a[1] < b[1]]
    return _contrasts(values, wanted, "greater", level, seed, replicates)


def at_one_budget(
    values: Mapping[tuple[Hashable, int], Sequence[Real]],
    *,
    level: Real = Fraction(19, 20),
    seed: int = 0,
    replicates: int = B,
) -> list[Contrast]:
    """Every two methods at each budget, the later one in `values` against the earlier, two-sided. Arguments, family and
    errors as in `crossings`."""
    wanted = [(b, a) for a, b in combinations(values, 2) if a[1] == b[1]]
    return _contrasts(values, wanted, "two-sided", level, seed, replicates)


def _contrasts(values, wanted, alternative: Alternative, level: Real, seed: int, replicates: int) -> list[Contrast]:
    found = []
    for a, b in wanted:
        here, there = values[a], values[b]
        if len(here) != len(there):
            names = (f"{a[0]}@{a[1]}", f"{b[0]}@{b[1]}")
            raise ValueError(f"{names[0]} has {len(here)} problems and {names[1]} {len(there)}; they must be the same")
        differences = [Fraction(x) - Fraction(y) for x, y in zip(here, there)]
        p, exact = sign_flip_reals(differences, alternative, seed=seed, replicates=replicates)
        low, high = bootstrap_interval(differences, level, seed=seed, replicates=replicates)
        wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
        mean = float(sum(differences, Fraction()) / len(differences))
        found.append(Contrast(*a, *b, mean, low, high, wins, losses, p, 1.0, exact))
    adjusted = holm([c.p for c in found])
    return [replace(c, adjusted=q) for c, q in zip(found, adjusted)]


def _grid(losses: Mapping[int, Sequence[Real]]) -> tuple[list[int], np.ndarray, Fraction]:
    """(budgets ascending, losses [budgets, n] as whole numbers of a unit, the unit)."""
    budgets = sorted(losses)
    if not budgets:
        raise ValueError("there is no budget; give at least one")
    sizes = {len(losses[b]) for b in budgets}
    if len(sizes) > 1:
        raise ValueError(f"the budgets have {sorted(sizes)} problems; they must be the same ones")
    (n,) = sizes
    if n < 2:
        raise ValueError(f"{n} problems are given; an interval by problem needs two")
    integers, unit = whole(x for b in budgets for x in losses[b])
    return budgets, integers.reshape(len(budgets), n), unit


def _first_usable(sums: np.ndarray, most: float) -> np.ndarray:
    """[columns]: of sums of losses [budgets, columns], the index from which on none is above `most`; their number where
    even the last is."""
    over = sums > most
    last = np.where(over.any(0), len(sums) - 1 - over[::-1].argmax(0), -1)
    return last + 1
