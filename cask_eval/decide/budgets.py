"""The matched budget b′: which budget gives an arm the reference's mean cache (docs/DEFINITIONS.md §4).

Where the schedule follows from lengths, the reference's dev lengths are replayed through its counter and no model runs
(`solve`). Where it depends on what is generated, that replay only gives the first budget to try, and the dev caches
measured there lead to the next (`search`). Accuracy never enters. Exact arithmetic: `tune` solves with it and
`verify` derives the same budget again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from math import floor, lcm

from cask_eval.errors import MethodError
from cask_eval.fields import Param
from cask_eval.footprint import Footprint, Packing, triangle
from cask_eval.ledger.events import ArmChoice, Evaluation, FootprintLock, PackingLock, ScheduleLock
from cask_eval.protocol.keys import Tried
from cask_eval.records.model import Record
from cask_eval.schedule import Book, Schedule

Lengths = Sequence[tuple[int, int]]
Evaluated = Sequence[tuple[int, Fraction]]

TOLERANCE = Fraction(1, 100)
EVALUATIONS = 4


def measured(dev_records: Iterable[Record]) -> tuple[list[tuple[int, int]], Fraction]:
    """The lengths (prompt, decode steps) of one arm's dev trials in one cell, and their mean cache C̄. Trials
    without an account are left out. Raises ValueError when none is left."""
    measure = Measure()
    for r in dev_records:
        measure.add(r)
    return measure.result()


class Measure:
    """`measured` of trials that are added one by one and not kept."""

    def __init__(self) -> None:
        self._lengths: list[tuple[int, int]] = []
        self._known: dict[tuple[int, int], tuple[int, int]] = {}
        # Fractions are added where their denominators are equal: a sum over many of them has thousands of digits.
        self._sums: Counter[int] = Counter()

    def add(self, record: Record) -> None:
        account = record.account()
        if account is None:
            return
        length = account.prompt_tokens, account.steps
        self._lengths.append(self._known.setdefault(length, length))
        mean = account.mean
        self._sums[mean.denominator] += mean.numerator

    def result(self) -> tuple[list[tuple[int, int]], Fraction]:
        """Raises ValueError when no trial had an account."""
        if not self._lengths:
            raise ValueError("no dev trial of the reference has a residency account; nothing to match against")
        total = sum((Fraction(part, whole) for whole, part in self._sums.items()), Fraction())
        return self._lengths, total / len(self._lengths)


def replay(schedule: Schedule, footprint: Footprint, lengths: Lengths) -> Fraction:
    """C̄ over trials of these lengths, in full-precision entries per layer and head. Boundaries count as never met,
    and every chain is as long as the trial."""
    return _Replay(footprint, lengths).mean(schedule)


class _Replay:
    """Means of many schedules over the same trials. The common denominator is found once: adding hundreds of fractions
    one by one is slow."""

    def __init__(self, footprint: Footprint, lengths: Lengths):
        self.footprint, self.counts = footprint, Counter(lengths)
        self.common = lcm(*(steps or 1 for _, steps in self.counts))
        self.entry = footprint.heads * footprint.entry_bytes

    def mean(self, schedule: Schedule, *, payload: bool = True) -> Fraction:
        """`payload=False` leaves keys and values out."""
        parts, total = schedule.split(), 0
        for (prompt, steps), count in self.counts.items():
            if steps:
                held = sum(self._bytes(part, prompt, steps, payload) for part in parts)
            else:
                held = prompt * self.entry * len(parts) * payload  # as Residency.mean counts it
            total += held * count * (self.common // (steps or 1))
        return Fraction(total, self.common * self.counts.total() * self.entry)

    def _bytes(self, schedule: Schedule, prompt: int, steps: int, payload: bool) -> int:
        """Bytes summed over the reads of one trial. When an event leaves what the last one left, all further cycles
        are alike (periodic events lie at multiples of delta), so they are multiplied and not walked."""
        book, total, last = Book(schedule, prompt), 0, None
        fired = schedule.compresses_prompt(prompt)
        if fired:
            book.fire()
        while (wait := book.wait()) is not None and wait <= steps:
            left = book.resident, book.prefix
            cycle = self._ramp(book.resident, wait, payload)
            if left == last:
                cycles, steps = divmod(steps, wait)
                total += cycles * cycle
                break
            total, steps = total + cycle, steps - wait
            book.grow(wait)
            book.fire()
            last, fired = left if fired else None, True
        return total + self._ramp(book.resident, steps, payload)

    def _ramp(self, resident: int, steps: int, payload: bool) -> int:
        """Bytes read over `steps` steps that start after `resident` entries and grow by one each."""
        f, last = self.footprint, resident + steps
        reads = triangle(last) - triangle(resident)
        held = f.payload_through(last) - f.payload_through(resident) if payload else 0
        return held + f.auxiliary_over(reads, steps)


def solve(
    schedule: Schedule,
    footprint: Footprint,
    lengths: Lengths,
    reference: Fraction,
    *,
    tolerance: Fraction = TOLERANCE,
) -> tuple[int, Fraction]:
    """(b′, C̄ at b′). The budget whose replayed mean is closest to `reference`, if that is within `tolerance`;
    otherwise the largest budget whose mean does not exceed it (the smallest possible one when every mean does). The
    caller records what is left of the difference. The schedule's own budget, the nominal one, wins among budgets of
    one and the same mean.

    Raises MethodError when what the method holds besides keys and values is more than the reference's whole cache, or
    when the mean does not grow with the budget; ValueError without lengths.
    """
    if not lengths or reference <= 0:
        raise ValueError(f"cannot match {len(lengths)} trials against a mean cache of {reference}")
    held, seen = _Replay(footprint, lengths), {}
    nominal, low = schedule.budget, schedule.chains

    def mean(budget: int) -> Fraction:
        if budget not in seen:
            seen[budget] = held.mean(replace(schedule, budget=budget))
        return seen[budget]

    # Above the longest trial no event can come any more.
    high = max(nominal, schedule.chains * max(p + t for p, t in lengths)) + 1
    _check_state(held, replace(schedule, budget=low), reference)
    # Packing a block of keys frees bytes: means may fall a little from one budget to the next, and the closest one may
    # lie a block away.
    block = footprint.packing.residual if footprint.packing else 0
    _check_monotone(mean, low, high, Fraction(block))

    below, above = low, high
    if mean(below) <= reference:
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if mean(middle) <= reference else (below, middle)
        if mean(above) <= reference:
            below = above

    near = range(max(low, below - block), min(high, below + 1 + block) + 1)
    best = min(near, key=lambda b: abs(mean(b) - reference))
    if abs(mean(best) / reference - 1) > tolerance:
        best = below
    if mean(nominal) == mean(best):
        best = nominal
    return best, mean(best)


def search(evaluated: Evaluated, reference: Fraction, seed: int, low: int = 1) -> tuple[int, bool]:
    """(budget, whether it is final). While the second is false, the dev trials are to be run at that budget and their
    mean cache appended to `evaluated`; the first budget is `seed`. The search ends when a mean is within `TOLERANCE` of
    the reference, when no other budget promises better, or after `EVALUATIONS`; final is the evaluated budget closest
    to the reference, the smaller of two. `low` is the smallest budget that the schedule can have.

    Secant steps: between the largest budget known to be too small and the smallest known to be too large; while there
    is none on one side, beyond the last one on the other, with the slope to the one before it (one entry per budget
    entry where there is none, or the means do not grow), at most doubling or halving the budget.
    """
    if not evaluated:
        return max(seed, low), False
    best, mean = min(evaluated, key=lambda e: (abs(e[1] - reference), e[0]))
    if abs(mean / reference - 1) <= TOLERANCE or len(evaluated) >= EVALUATIONS:
        return best, True
    small = sorted((e for e in evaluated if e[1] <= reference), reverse=True)
    large = sorted(e for e in evaluated if e[1] > reference)
    (near, mean), *others = [*small[:1], *large] if small and large else small or large
    other, mean_there = others[0] if others else (near + 1, mean + 1)
    slope = Fraction(mean_there - mean) / (other - near)
    budget = near + floor((reference - mean) / (slope if slope > 0 else 1) + Fraction(1, 2))
    if small and large:
        budget = min(max(budget, near + 1), other - 1)
    else:
        budget = min(max(budget, -(-near // 2), low), 2 * near)
    # Nothing is left to try between neighbours and at the lower end.
    if budget in dict(evaluated) or not low <= budget:
        return best, True
    return budget, False


def reference_choice(
    preset: str, params: dict[str, Param], schedule: Schedule, footprint: Footprint, mean: Fraction
) -> ArmChoice:
    """The baseline's arm: its nominal budget, its measured dev cache."""
    return _choice(preset, params, schedule, footprint, mean, mean)


def matched_choice(
    preset: str,
    params: dict[str, Param],
    schedule: Schedule,
    footprint: Footprint,
    lengths: Lengths,
    reference: Fraction,
) -> ArmChoice:
    """Any other arm: `schedule`, given at its nominal budget, at the solved one, and the mean that the replay gives
    there. For a schedule that depends on what is generated this is where the search starts, and the last word for an
    arm that does not run on the dev split."""
    budget, mean = solve(schedule, footprint, lengths, reference)
    return _choice(preset, params, replace(schedule, budget=budget), footprint, mean, reference)


def searched_choice(draft: ArmChoice, evaluate: Callable[[ArmChoice], Fraction]) -> ArmChoice:
    """Search the budget of an arm that depends on what it generates. `draft` is its `matched_choice`; `evaluate` runs
    the dev trials of the choice that it is given and returns their mean cache. Only `evaluate` has effects, so an
    interrupted search is taken up by calling this again. An arm that does not need it is returned as it is."""
    if not schedule_of(draft).content_driven:
        return draft
    evaluated: list[tuple[int, Fraction]] = []
    while True:
        budget, final = _next(draft, evaluated)
        if final:
            break
        # As the ledger will state it, so that whoever reads it there finds the same next step.
        evaluated.append((budget, Fraction(entries(evaluate(at_budget(draft, budget))))))
    steps = [Evaluation(budget=b, dev_mean=entries(m)) for b, m in evaluated]
    return at_budget(draft, budget).model_copy(update={"dev_mean": entries(dict(evaluated)[budget]), "searched": steps})


def tried(matched: dict[str, dict[str, dict[str, ArmChoice]]]) -> Tried:
    """The budgets that each search of `DevRun.matched` ran."""
    return {
        cell: {
            arm: {config: [step.budget for step in choice.searched] for config, choice in row.items()}
            for arm, row in rows.items()
        }
        for cell, rows in matched.items()
    }


def at_budget(draft: ArmChoice, budget: int) -> ArmChoice:
    """The arm as it is run at one budget of its search."""
    return draft.model_copy(update={"schedule": draft.schedule.model_copy(update={"budget": budget})})


def search_fault(draft: ArmChoice, found: ArmChoice) -> str | None:
    """Why `found` is not what the search makes of `draft` and of the means that `found` states; None when it is."""
    given = iter(found.searched)

    def stated(choice: ArmChoice) -> Fraction:
        step = next(given, None)
        if step is None or step.budget != choice.schedule.budget:
            tried = "nothing more" if step is None else f"budget {step.budget}"
            raise LookupError(f"the search asks for budget {choice.schedule.budget}, but {tried} was run")
        return Fraction(step.dev_mean)

    try:
        expected = searched_choice(draft, stated)
    except (LookupError, ArithmeticError, ValueError) as error:
        return str(error)
    if found != expected:
        return (
            f"the budget is {found.schedule.budget} at {found.dev_mean} entries, but the search ends at "
            f"{expected.schedule.budget} with {expected.dev_mean} after {len(expected.searched)} runs"
        )
    return None


def schedule_of(choice: ArmChoice) -> Schedule:
    """The frozen schedule. Raises ValueError when it is none."""
    fields = choice.schedule.model_dump()
    return Schedule(**{**fields, "boundaries": tuple(fields["boundaries"])})


def lock_of(schedule: Schedule) -> ScheduleLock:
    """A schedule as the ledger writes it; `schedule_of` is the way back."""
    return ScheduleLock(**{**asdict(schedule), "boundaries": list(schedule.boundaries)})


def footprint_of(choice: ArmChoice) -> Footprint:
    """The frozen footprint. Raises ValueError when it is none."""
    fields = choice.footprint.model_dump()
    return Footprint(**{**fields, "packing": Packing(**fields["packing"]) if fields["packing"] else None})


def text(value: Fraction) -> str:
    """A fraction as the ledger writes it: lowest terms, "p/q"."""
    return f"{value.numerator}/{value.denominator}"


def entries(mean: Fraction) -> str:
    """A mean cache as the ledger states it: "p/q", rounded to a billionth of an entry, because the exact mean of many
    trials has thousands of digits."""
    return text(Fraction(round(mean * 10**9), 10**9))


def _choice(
    preset: str,
    params: dict[str, Param],
    schedule: Schedule,
    footprint: Footprint,
    mean: Fraction,
    reference: Fraction,
) -> ArmChoice:
    held, packing = asdict(footprint), footprint.packing
    return ArmChoice(
        preset=preset,
        params=params,
        schedule=lock_of(schedule),
        footprint=FootprintLock(**{**held, "packing": PackingLock(**asdict(packing)) if packing else None}),
        dev_mean=entries(mean),
        reference_mean=entries(reference),
    )


def _next(draft: ArmChoice, evaluated: Evaluated) -> tuple[int, bool]:
    return search(evaluated, Fraction(draft.reference_mean), draft.schedule.budget, draft.schedule.chains)


def _check_state(held: _Replay, smallest: Schedule, reference: Fraction) -> None:
    state, footprint = held.mean(smallest, payload=False), held.footprint
    if smallest.trigger != "never" and state >= reference:
        per_entry = footprint.auxiliary_over(1, 0)
        raise MethodError(
            f"what the method remembers besides keys and values ({footprint.fixed_bytes} bytes per sequence and "
            f"{per_entry} bytes per cached token) equals {float(state):.1f} entries per layer and head even at budget "
            f"{smallest.budget}, but the reference's mean cache is {float(reference):.1f}: no budget can match it. Let "
            "the method remember fewer queries, or raise the study's budgets"
        )


def _check_monotone(mean: Callable[[int], Fraction], low: int, high: int, allowed: Fraction, points: int = 9) -> None:
    grid = sorted({low + (high - low) * i // (points - 1) for i in range(points)})
    for a, b in zip(grid, grid[1:], strict=False):
        if mean(a) > mean(b) + allowed:
            raise MethodError(
                f"the mean cache falls from {float(mean(a)):.3f} at budget {a} to {float(mean(b)):.3f} at {b}; "
                "a matched budget cannot be solved for this schedule"
            )
