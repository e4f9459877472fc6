"""In which regime the held-out trials of each arm ran: counts, from the frozen schedules and what was generated.

A trial's record says its regime too; this does not take its word for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cask_eval.decide.budgets import schedule_of
from cask_eval.decide.exclusion import stages_of
from cask_eval.ledger.events import Select
from cask_eval.protocol.model import Protocol
from cask_eval.records.model import Record
from cask_eval.report import format as fmt
from cask_eval.stages import REGIMES, regime

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
    named = " or ".join(name.replace("_", " ") for name in protocol.exclude.regimes)
    return (
        "By the registered rule a cell's comparisons leave out, in all arms, the problems of which a baseline trial "
        f"is {named}; tuning and the numbers of each arm alone leave out nothing."
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
    own: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.phase == "heldout":
            own.setdefault((record.cell, record.arm), []).append(record)
    return tuple(
        _row(cell, arm, own[cell, arm], select)
        for cell in cells
        for arm in arms
        if (cell, arm) in own and arm in select.arms.get(cell, {})
    )


def _row(cell: str, arm: str, records: list[Record], select: Select) -> Row:
    try:
        schedule = schedule_of(select.arms[cell][arm])
    except ValueError:  # verification says so (V16); here there is nothing to count from
        return Row(fmt.one_line(cell), fmt.one_line(arm), (fmt.DASH,) * len(REGIMES), *(fmt.DASH,) * 4)
    counts: Counter[str] = Counter()
    guards: Counter[str] = Counter()
    prefix = decode = failed = 0
    for record in records:
        account = record.account()
        if account is None:
            failed += 1
            continue
        found = stages_of(record, schedule)
        counts[regime(found, account.active)] += 1
        guards.update(found.guards)
        prefix, decode = prefix + found.prefix_events, decode + found.decode_events
    return Row(
        cell=fmt.one_line(cell),
        arm=fmt.one_line(arm),
        counts=tuple(f"{counts[name]:,}" for name in REGIMES),
        failed=f"{failed:,}",
        prefix_events=f"{prefix:,}",
        decode_events=f"{decode:,}",
        guards=", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in sorted(guards.items())) or fmt.DASH,
    )
