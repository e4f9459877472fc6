"""Tuning: the baseline on dev, budgets matched to its mean cache, the candidate's grid, the registered rule."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from cask_eval.decide.budgets import Lengths, measured, replay, solve
from cask_eval.decide.selection import choose, scores
from cask_eval.engine.registry import load as load_preset
from cask_eval.ledger.events import ArmChoice, DevRun, ScheduleLock, Select
from cask_eval.protocol.keys import configs
from cask_eval.protocol.model import Cell, Protocol
from cask_eval.records.model import Record
from cask_eval.residency import Schedule


def choice(preset: str, params: dict[str, Any], nominal: int, lengths: Lengths, reference: Fraction) -> ArmChoice:
    """An arm whose budget gives it the reference's mean cache over the reference's dev lengths. An arm that never
    compresses has nothing to match and keeps the nominal budget."""
    method = load_preset(preset).make(preset, params)
    schedule = method.schedule(nominal)
    budget, mean = nominal, None
    if schedule.trigger == "never":
        mean = replay(schedule, lengths)
    else:
        budget, mean = solve(method.schedule, lengths, reference, nominal=nominal)
    return ArmChoice(preset=preset, params=params, schedule=_lock(method.schedule(budget)), dev_mean=_ratio(mean),
                     reference_mean=_ratio(reference))


def baseline_choice(protocol: Protocol, cell: Cell, lengths: Lengths | None = None) -> ArmChoice:
    """The baseline at its nominal budget; its own caches are the reference once they are known."""
    arm = protocol.baseline
    schedule = load_preset(arm.preset).make(arm.preset, arm.params).schedule(cell.budget)
    mean = replay(schedule, lengths) if lengths else Fraction(0)
    return ArmChoice(preset=arm.preset, params=arm.params, schedule=_lock(schedule), dev_mean=_ratio(mean),
                     reference_mean=_ratio(mean))


def match(protocol: Protocol, cell: Cell, baseline_records: list[Record]) -> dict[str, ArmChoice]:
    """Configuration → the arm as dev runs it, "" being the baseline."""
    lengths, reference = measured(baseline_records)
    out = {"": baseline_choice(protocol, cell, lengths)}
    for name, params in configs(protocol.candidate):
        out[name] = choice(protocol.candidate.preset, params, cell.budget, lengths, reference)
    return out


def select(protocol: Protocol, dev_ids: list[str], records: list[Record], dev: DevRun) -> Select:
    """The registered rule applied to the dev records, and every held-out arm frozen with its matched budget."""
    table = scores(protocol, records, dev_ids)
    chosen = choose(protocol, table)
    arms: dict[str, dict[str, ArmChoice]] = {}
    for cell in protocol.cells:
        lengths, reference = measured(r for r in records if r.cell == cell.name and r.arm == "baseline")
        matched = dev.matched[cell.name]
        arms[cell.name] = {"baseline": matched[""], "candidate": matched[chosen[cell.name]]}
        for control in protocol.controls:
            arms[cell.name][control.name] = choice(control.preset, control.params, cell.budget, lengths, reference)
    t = protocol.tuning
    return Select(
        rule=f"{t.select}, scope {t.scope}, ties {t.ties}",
        scores={cell: {name: _ratio(v) for name, v in row.items()} for cell, row in table.items()},
        chosen=chosen,
        arms=arms,
    )


def _lock(schedule: Schedule) -> ScheduleLock:
    return ScheduleLock(trigger=schedule.trigger, budget=schedule.budget, delta=schedule.delta, prompt=schedule.prompt)


def _ratio(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


