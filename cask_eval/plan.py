"""What a schedule will do to a trial of given lengths, before any model runs. No torch and no pydantic here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from cask_eval.footprint import Footprint
from cask_eval.residency import Residency, expected, happenings
from cask_eval.schedule import Event, Schedule
from cask_eval.stages import Regime, of_events, regime


@dataclass(frozen=True)
class PlannedEvent:
    """One event. Counts are entries per layer and KV head; `prefix` are those counted as prompt afterwards; `position`
    is the number of tokens processed."""

    chain: int
    step: int
    position: int
    before: int
    after: int
    prefix: int
    stage_one: bool
    stage_two: bool
    guard: str


@dataclass(frozen=True)
class Plan:
    """A trial's counts, in entries per layer and KV head, summed over its chains.

    terminal_cache, terminal_prefix: resident entries, and those counted as prompt, after the last decode forward.
    mean_cache, peak_cache: over the decode forwards; what the prompt leaves where there is none. prefix_events,
    decode_events: events that evicted prompt entries in a stage of their own, and that compressed generated ones (all
    others, for policies without stages). guards: rule → how often it stood in. regime: ``prefix_budget_exhausted``
    when the prompt ever took up the whole budget, ``never_compressed`` without an event.
    """

    terminal_cache: int
    mean_cache: Fraction
    peak_cache: int
    terminal_prefix: int
    prefix_events: int
    decode_events: int
    guards: dict[str, int]
    regime: Regime
    events: list[PlannedEvent]

    def to_json(self) -> dict[str, Any]:
        exact = f"{self.mean_cache.numerator}/{self.mean_cache.denominator}"
        return {**asdict(self), "mean_cache": float(self.mean_cache), "mean_cache_exact": exact}


def plan(schedule: Schedule, prompt_tokens: int, output_tokens: int) -> Plan:
    """The plan of a trial with so many output tokens, of which all but the last are read again. Boundaries count as
    never met, and every chain is as long. Raises ValueError without prompt or output."""
    if prompt_tokens < 1 or output_tokens < 1:
        raise ValueError(f"prompt of {prompt_tokens} and output of {output_tokens} tokens must both be at least 1")
    steps, terminal, prefixes = output_tokens - 1, 0, 0
    events: list[PlannedEvent] = []
    happened: list[Event] = []
    for chain, part in enumerate(schedule.split()):
        resident, prefix, last = prompt_tokens, prompt_tokens, 0
        for step, before, done in happenings(part, prompt_tokens, steps):
            resident, prefix, last = done.resident, done.prefix, step
            events.append(
                PlannedEvent(
                    chain,
                    step,
                    prompt_tokens + step,
                    before,
                    resident,
                    prefix,
                    done.stage_one,
                    done.stage_two,
                    done.guard,
                )
            )
            happened.append(done)
        terminal, prefixes = terminal + resident + steps - last, prefixes + prefix
    account = weigh(schedule, Footprint(1, 1, 1), prompt_tokens, output_tokens, 1)
    found = of_events(happened, schedule.prompt)
    return Plan(
        terminal_cache=terminal,
        mean_cache=account.mean,
        peak_cache=account.peak_entries if steps else terminal,
        terminal_prefix=prefixes,
        prefix_events=found.prefix_events,
        decode_events=found.decode_events,
        guards=dict(found.guards),
        regime=regime(found, bool(events)),
        events=sorted(events, key=lambda e: (e.step, e.chain)),
    )


def weigh(schedule: Schedule, footprint: Footprint, prompt_tokens: int, output_tokens: int, layers: int) -> Residency:
    """The planned trial's account in bytes."""
    chain = [-1] * output_tokens  # no token: no boundary
    return expected(schedule, footprint, prompt_tokens, [chain] * schedule.chains, layers)
