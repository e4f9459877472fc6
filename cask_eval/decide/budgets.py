"""The matched budget b′: which budget gives an arm the reference's mean cache (methods.md §4, Search).

The reference's dev lengths are replayed through a schedule's counter, so no model runs; accuracy never enters.
Pure integer arithmetic: `tune` solves with it and `verify` derives the same budget again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from fractions import Fraction

from cask_eval.errors import MethodError
from cask_eval.fields import Param
from cask_eval.ledger.events import ArmChoice, ScheduleLock
from cask_eval.records.model import Record
from cask_eval.residency import Schedule

Lengths = Sequence[tuple[int, int]]

TOLERANCE = Fraction(1, 100)


def measured(dev_records: Iterable[Record]) -> tuple[list[tuple[int, int]], Fraction]:
    """The lengths (prompt, decode steps) of one arm's dev trials in one cell, and their mean cache C̄. Trials
    without an account are left out. Raises ValueError when none is left."""
    accounts = [r.residency.account() for r in dev_records if r.residency is not None]
    if not accounts:
        raise ValueError("no dev trial of the reference has a residency account; nothing to match against")
    mean = sum((a.mean for a in accounts), Fraction()) / len(accounts)
    return [(a.prompt_tokens, a.steps) for a in accounts], mean


def replay(schedule: Schedule, lengths: Lengths) -> Fraction:
    """C̄ of a length-driven schedule over trials of these lengths: mean entries per layer and head."""
    counts = Counter(lengths)
    return sum((_mean(schedule, p, t) * k for (p, t), k in counts.items()), Fraction()) / counts.total()


def _mean(schedule: Schedule, prompt: int, steps: int) -> Fraction:
    """`walk(schedule, prompt, steps).mean` without walking: after the first event all cycles are alike."""
    if steps == 0:
        return Fraction(prompt)
    resident, target = prompt, schedule.target(prompt)
    if schedule.prompt == "compete" and schedule.fires(prompt, prompt, prompt):
        resident = target
    first = schedule.next_event(resident, prompt, prompt)
    if first is None or first > steps:
        return Fraction(_ramp(resident, steps), steps)
    cycle = schedule.next_event(target, prompt, prompt + first) or 1
    cycles, rest = divmod(steps - first, cycle)
    return Fraction(_ramp(resident, first) + cycles * _ramp(target, cycle) + _ramp(target, rest), steps)


def _ramp(resident: int, steps: int) -> int:
    """Entries read over `steps` steps that start after `resident` entries and grow by one each."""
    return steps * resident + steps * (steps + 1) // 2


def solve(
    schedule_for: Callable[[int], Schedule],
    lengths: Lengths,
    reference: Fraction,
    *,
    nominal: int,
    tolerance: Fraction = TOLERANCE,
) -> tuple[int, Fraction]:
    """(b′, C̄ at b′). The budget whose mean is closest to `reference`, if that is within `tolerance`; otherwise
    the largest budget whose mean does not exceed it (1 when every one does). The caller records what is left of
    the difference. `nominal` wins among budgets of one and the same mean.

    Raises MethodError when the mean does not grow with the budget, and ValueError without lengths.
    """
    if not lengths or reference <= 0:
        raise ValueError(f"cannot match {len(lengths)} trials against a mean cache of {reference}")
    seen: dict[int, Fraction] = {}

    def mean(budget: int) -> Fraction:
        if budget not in seen:
            seen[budget] = replay(schedule_for(budget), lengths)
        return seen[budget]

    # Above the longest trial no event can come any more.
    high = max(nominal, max(p + t for p, t in lengths)) + 1
    _check_monotone(mean, high)

    below, above = 1, high
    if mean(below) <= reference:
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if mean(middle) <= reference else (below, middle)
        if mean(above) <= reference:
            below = above

    best = min((below, below + 1), key=lambda b: abs(mean(b) - reference))
    if abs(mean(best) / reference - 1) > tolerance:
        best = below
    if mean(nominal) == mean(best):
        best = nominal
    return best, mean(best)


def reference_choice(preset: str, params: dict[str, Param], schedule: ScheduleLock, mean: Fraction) -> ArmChoice:
    """The baseline's arm: its nominal budget, its measured dev cache."""
    return ArmChoice(preset=preset, params=params, schedule=schedule, dev_mean=text(mean), reference_mean=text(mean))


def matched_choice(
    preset: str,
    params: dict[str, Param],
    schedule_for: Callable[[int], Schedule],
    lengths: Lengths,
    reference: Fraction,
    *,
    nominal: int,
) -> ArmChoice:
    """Any other arm of a length-driven method: the solved budget, and the mean that the replay gives there."""
    budget, mean = solve(schedule_for, lengths, reference, nominal=nominal)
    lock = ScheduleLock(kind="length", **asdict(schedule_for(budget)))
    return ArmChoice(preset=preset, params=params, schedule=lock, dev_mean=text(mean), reference_mean=text(reference))


def schedule_of(lock: ScheduleLock, budget: int | None = None) -> Schedule:
    """The schedule that a lock describes, at its own or another budget."""
    return Schedule(lock.trigger, budget if budget is not None else lock.budget, lock.delta, lock.prompt)


def text(value: Fraction) -> str:
    """A fraction as the ledger writes it: lowest terms, "p/q"."""
    return f"{value.numerator}/{value.denominator}"


def _check_monotone(mean: Callable[[int], Fraction], high: int, points: int = 9) -> None:
    grid = sorted({1 + (high - 1) * i // (points - 1) for i in range(points)})
    for a, b in zip(grid, grid[1:], strict=False):
        if mean(a) > mean(b):
            raise MethodError(
                f"the mean cache falls from {float(mean(a)):.3f} at budget {a} to {float(mean(b)):.3f} at {b}; "
                "a matched budget cannot be solved for this schedule"
            )
