"""Tuning, apart from running it: which arms the dev split runs, and what the registered rule freezes. The rule and the
arithmetic are those of `cask_eval.decide`, which the verifier runs again; this adds only the methods' own schedules."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction

from cask_eval.decide import selection
from cask_eval.decide.budgets import Lengths, matched_choice, measured, reference_choice
from cask_eval.decide.selection import arm_of
from cask_eval.engine.registry import load as load_preset
from cask_eval.errors import MethodError, StateError
from cask_eval.ledger.events import ArmChoice, DevRun, ScheduleLock, Select
from cask_eval.protocol.keys import dev_runs
from cask_eval.protocol.model import Cell, Protocol
from cask_eval.records.model import Record


def baseline(protocol: Protocol, cell: Cell, mean: Fraction = Fraction(0)) -> ArmChoice:
    """The baseline at its nominal budget; `mean` is its dev cache once that is known."""
    preset, params = arm_of(protocol, "baseline", "")
    schedule = load_preset(preset).make(preset, params).schedule(cell.budget)
    return reference_choice(preset, params, ScheduleLock(**asdict(schedule)), mean)


def match(
    protocol: Protocol, cell: Cell, baseline_records: list[Record], longest: int
) -> dict[str, dict[str, ArmChoice]]:
    """`DevRun.matched` of one cell: the baseline, and every configuration of each candidate at its matched budget.
    Raises StateError when no baseline trial left an account, and MethodError when some arm, a control included,
    could not hold a prompt of `longest` tokens there: better now than after the held-out split is consumed."""
    try:
        lengths, mean = measured(baseline_records)
    except ValueError:
        fault = next((r.failure for r in baseline_records if r.failure), None)
        raise StateError(
            f"cell {cell.name}: every dev trial of the baseline failed, so there is no cache to match"
            + (f"; the first said {fault.error}: {fault.message}" if fault else "")
        ) from None
    out = {"baseline": {"": baseline(protocol, cell, mean)}}
    for arm, names in dev_runs(protocol).items():
        if arm != "baseline":
            out[arm] = {config: _matched(protocol, cell, arm, config, lengths, mean) for config in names}
    controls = {c.name: _matched(protocol, cell, c.name, "", lengths, mean) for c in protocol.controls}
    for arm, choice in [*((name, c) for name, row in out.items() for c in row.values()), *controls.items()]:
        method = load_preset(choice.preset).make(choice.preset, dict(choice.params))
        try:
            method.check(longest, choice.schedule.budget)
        except MethodError as error:
            raise MethodError(
                f"cell {cell.name}, arm {arm}, matched from budget {cell.budget} to the baseline's mean "
                f"cache of {float(mean):.1f}: {error}"
            ) from None
    return out


def select(protocol: Protocol, dev_ids: list[str], records: list[Record], dev: DevRun) -> Select:
    """The registered rules applied to the dev records, and every held-out arm frozen with its matched budget."""
    controls = {}
    for cell in protocol.cells:
        lengths, mean = measured(r for r in records if r.cell == cell.name and r.arm == "baseline")
        controls[cell.name] = {c.name: _matched(protocol, cell, c.name, "", lengths, mean) for c in protocol.controls}
    return selection.freeze(protocol, selection.select(protocol, records, dev_ids), dev.matched, controls)


def _matched(protocol: Protocol, cell: Cell, arm: str, config: str, lengths: Lengths, mean: Fraction) -> ArmChoice:
    preset, params = arm_of(protocol, arm, config)
    method = load_preset(preset).make(preset, params)
    return matched_choice(preset, params, method.schedule, lengths, mean, nominal=cell.budget)
