"""Which problems a registered rule leaves out of a cell's comparisons, because compression came to nothing there.

A trial's regime follows from the frozen schedule and from how much was generated (`cask_eval.stages`); what a record
says of it is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from cask_eval.decide.arms import ArmTrials
from cask_eval.decide.budgets import schedule_of
from cask_eval.ledger.events import ArmChoice
from cask_eval.protocol.model import Exclude
from cask_eval.records.model import Record
from cask_eval.schedule import Schedule
from cask_eval.stages import Regime, Stages, regime, stages


def stages_of(record: Record, schedule: Schedule) -> Stages:
    """What the schedule that was frozen for a trial did to it, from its lengths; nothing where no entry was ever
    compressed or the trial left no account."""
    account = record.account()
    if account is None or not account.active:
        return Stages()
    outputs = [chain.output_ids for chain in record.chains] or [record.output_ids]
    return stages(schedule, record.prompt_tokens, outputs)


def regime_of(record: Record, schedule: Schedule) -> Regime | None:
    """The regime of a trial; None for one that left no account."""
    account = record.account()
    return None if account is None else regime(stages_of(record, schedule), account.active)


def excluding(rule: Exclude | None, arms: Mapping[str, Mapping[str, ArmChoice]]) -> Callable[[Record], bool]:
    """Whether a record is a baseline trial that ran in a regime which the rule names; `arms` is `Select.arms`. Without
    a rule or a frozen baseline none is."""
    if rule is None:
        return lambda record: False
    schedules = {cell: schedule_of(row["baseline"]) for cell, row in arms.items() if "baseline" in row}

    def found(record: Record) -> bool:
        known = record.arm == "baseline" and record.cell in schedules
        return known and regime_of(record, schedules[record.cell]) in rule.regimes

    return found


def left_out(baseline: ArmTrials) -> set[str]:
    """The problems of which any baseline trial is `excluding`."""
    return {problem for problem, trials in baseline.trials.items() if any(t.excluded for t in trials)}


def without(arm: ArmTrials, problems: set[str]) -> ArmTrials:
    """The same arm without these problems."""
    if not problems:
        return arm
    return replace(arm, trials={p: records for p, records in arm.trials.items() if p not in problems})
