"""What the events of one trial did to its prompt and to what it generated, and the regime that this makes it.

A regime says which part of a method a trial has tested at all (docs/DEFINITIONS.md §7). It follows from the schedule
and the lengths alone, so that nobody chooses it after having seen the outcome. No torch and no pydantic here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from cask_eval.residency import happenings
from cask_eval.schedule import EXHAUSTED, Event, Schedule

__all__ = ["REGIMES", "Regime", "Stages", "of_events", "regime", "stages"]

Regime = Literal["active", "prefix_budget_exhausted", "never_compressed"]
REGIMES: tuple[Regime, ...] = get_args(Regime)


@dataclass(frozen=True)
class Stages:
    """Counts of a trial's events, over all its chains.

    prefix_events: those that evicted prompt entries in a stage of their own. decode_events: those that compressed
    generated entries (for policies without stages: all others). exhausted: those after which entries that count as
    prompt took up the whole budget, so that nothing generated could stay. guards: rule → how often it stood in for the
    second stage.
    """

    prefix_events: int = 0
    decode_events: int = 0
    exhausted: int = 0
    guards: Mapping[str, int] = field(default_factory=dict)


def of_events(events: Sequence[Event], prompt: str) -> Stages:
    """The counts of `events` under a schedule's prompt policy, which is one of `cask_eval.schedule.PROMPTS`."""
    return Stages(
        prefix_events=sum(e.stage_one for e in events),
        decode_events=sum(e.stage_two for e in events),
        # With overflow 'first' no rule is named: a pinned prompt that fills the budget is kept as far as it goes.
        exhausted=sum(e.guard == EXHAUSTED or (prompt == "pinned" and e.prefix >= e.resident) for e in events),
        guards=dict(sorted(Counter(e.guard for e in events if e.guard).items())),
    )


def stages(schedule: Schedule, prompt_tokens: int, outputs: Sequence[Sequence[int]]) -> Stages:
    """What the schedule did to a trial whose chains put out these token ids; most methods have one chain. All but the
    last id of each are read again. Raises ValueError when the schedule has another number of chains."""
    events = [
        done
        for part, ids in zip(schedule.split(), outputs, strict=True)
        for _, _, done in happenings(part, prompt_tokens, max(0, len(ids) - 1), ids)
    ]
    return of_events(events, schedule.prompt)


def regime(found: Stages, compressed: bool) -> Regime:
    """``never_compressed`` when nothing ever was; ``prefix_budget_exhausted`` when the prompt took up the whole budget
    after any event; else ``active``. `compressed` is `Residency.active`, which also counts packed entries."""
    if not compressed:
        return "never_compressed"
    return "prefix_budget_exhausted" if found.exhausted else "active"
