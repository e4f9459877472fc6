"""In which regime the held-out trials of each arm ran: counts, from the frozen schedules and what was generated.

A trial's record says its regime too; this does not take its word for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cask_eval.decide.budgets import schedule_of
from cask_eval.ledger.events import ArmChoice, Select
from cask_eval.protocol.model import Protocol
from cask_eval.records.model import Record
from cask_eval.report import format as fmt
from cask_eval.schedule import Schedule
from cask_eval.stages import REGIMES, Stages, regime, stages

NOTE = (
    "What compression came to in each held-out trial: active; prefix budget exhausted, where after an event entries of "
    "the prompt took up the whole budget, so that nothing generated was left; or never compressed. Prompt and decode "
    "events are those of all trials: events that evicted prompt entries in a stage of their own, and events that "
    "compressed generated entries (all others, for methods without stages)."
)


def rule(protocol: Protocol) -> str:
    """What the comparisons leave out, in a sentence."""
    if protocol.exclude is None:
        return "No trial is left out of any comparison for its regime."
    meaning = {
        "never_compressed": "of which no trial of either arm was ever compressed",
        "prefix_budget_exhausted": "whose prompt takes up the baseline's whole budget at an event",
    }
    named = ", and those ".join(meaning[name] for name in protocol.exclude.regimes)
    return (
        f"By the registered rule each comparison leaves out, in both arms, the problems {named}; tuning and the numbers "
        "of each arm alone leave out nothing."
    )


NAMES = tuple(name.replace("_", " ") for name in REGIMES)


@dataclass(frozen=True)
class Row:
    """One arm in one cell; `counts` are trials, in the order of `NAMES`."""

    cell: str
    arm: str
    counts: tuple[str, ...]
    failed: str
    prefix_events: str
    decode_events: str
    guards: str


def collect(records: Iterable[Record], select: Select, cells: Sequence[str], arms: Sequence[str]) -> tuple[Row, ...]:
    """A row for each of `cells` and `arms`, in their order, that ran."""
    counting = Counting(select)
    for _ in counting.through(records):
        pass
    return counting.rows(cells, arms)


class Counting:
    """The regimes of trials that are seen one by one and not kept: there may be more than memory holds. Without a
    selection there is nothing to count from."""

    def __init__(self, select: Select | None):
        self.select = select
        self._arms: dict[tuple[str, str], _Counts] = {}

    def through(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same records, once they are counted."""
        for record in records:
            if self.select and record.phase == "heldout":
                place = record.cell, record.arm
                if place not in self._arms:
                    self._arms[place] = _Counts(self.select.arms.get(record.cell, {}).get(record.arm))
                self._arms[place].add(record)
            yield record

    def rows(self, cells: Sequence[str], arms: Sequence[str]) -> tuple[Row, ...]:
        """A row for each of `cells` and `arms`, in their order, that was frozen and ran."""
        own = [(cell, arm, self._arms[cell, arm]) for cell in cells for arm in arms if (cell, arm) in self._arms]
        return tuple(counts.row(cell, arm) for cell, arm, counts in own if counts.frozen)


class _Counts:
    """Those of one arm in one cell. `schedule` is None where there is nothing to count from: it was not frozen, or is
    no schedule, which verification says (V16)."""

    def __init__(self, choice: ArmChoice | None):
        self.frozen = choice is not None
        try:
            self.schedule = choice and schedule_of(choice)
        except ValueError:
            self.schedule = None
        self.regimes: Counter[str] = Counter()
        self.guards: Counter[str] = Counter()
        self.prefix = self.decode = self.failed = 0

    def add(self, record: Record) -> None:
        if self.schedule is None:
            return
        account = record.account()
        if account is None:
            self.failed += 1
            return
        found = _stages_of(record, self.schedule)
        self.regimes[regime(found, account.active)] += 1
        self.guards.update(found.guards)
        self.prefix, self.decode = self.prefix + found.prefix_events, self.decode + found.decode_events

    def row(self, cell: str, arm: str) -> Row:
        if self.schedule is None:
            return Row(fmt.one_line(cell), fmt.one_line(arm), (fmt.DASH,) * len(REGIMES), *(fmt.DASH,) * 4)
        return Row(
            cell=fmt.one_line(cell),
            arm=fmt.one_line(arm),
            counts=tuple(f"{self.regimes[name]:,}" for name in REGIMES),
            failed=f"{self.failed:,}",
            prefix_events=f"{self.prefix:,}",
            decode_events=f"{self.decode:,}",
            guards=", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in sorted(self.guards.items())) or fmt.DASH,
        )


def _stages_of(record: Record, schedule: Schedule) -> Stages:
    """What the schedule that was frozen for a trial did to it, from its lengths; nothing where no entry was ever
    compressed or the trial left no account."""
    account = record.account()
    if account is None or not account.active:
        return Stages()
    outputs = [chain.output_ids for chain in record.chains] or [record.output_ids]
    return stages(schedule, record.prompt_tokens, outputs)
