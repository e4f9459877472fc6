"""A small study made of data only: protocol, selection and held-out records, each piece replaceable."""

from __future__ import annotations

from cask_eval.canonical import ZERO
from cask_eval.footprint import Footprint
from cask_eval.ledger.events import ArmChoice, FootprintLock, ScheduleLock, Select
from cask_eval.protocol.model import Protocol
from cask_eval.records.model import GradeRecord, Record, ResidencyRecord
from cask_eval.residency import Residency, walk
from cask_eval.schedule import Schedule

BRANCHES = [
    {"name": "A", "when": {"positive_cells": ">=1", "negative_cells": "==0"}, "decision": "adopt"},
    {"name": "B", "when": {"positive_cells": ">=1"}, "decision": "depends on the regime"},
    {"name": "C", "otherwise": True, "decision": "reject"},
]


def protocol(
    *,
    models=("m",),
    budgets=(16,),
    samples=1,
    branches=BRANCHES,
    controls=(),
    test=None,
    candidates=("candidate",),
    survivors=None,
    **rest,
) -> Protocol:
    registered = {"procedure": "mcnemar_exact", "alpha": "0.05", "veto": {"alpha": "0.05"}, **(test or {})}
    return Protocol.model_validate(
        {
            "study": "toy",
            "hypothesis": "The candidate solves more problems.",
            "task": {"name": "chain", "dev": "splits/dev.json", "heldout": "splits/heldout.json"},
            "models": [{"id": f"embedded:{m}", "name": m} for m in models],
            "generation": {"temperature": "0.6", "samples": samples, "max_new_tokens": 64},
            "budgets": list(budgets),
            "baseline": {"preset": "triattention"},
            "candidates": [{"name": c, "preset": "alpha"} for c in candidates],
            "screening": survivors and {"survivors": survivors},
            "controls": [{"name": c, "preset": "random_pp"} for c in controls],
            "test": {"endpoint": "accuracy", **registered},
            "branches": list(branches),
            **rest,
        }
    )


def choice(preset: str, budget: int, prompt: str = "pinned") -> ArmChoice:
    schedule = ScheduleLock(trigger="slack", budget=budget, delta=4, prompt=prompt)
    held = FootprintLock(heads=2, head_dim=2, itemsize=2)
    return ArmChoice(
        preset=preset, params={}, schedule=schedule, footprint=held, dev_mean="18/1", reference_mean="18/1"
    )


def select(study: Protocol, survivors=None, arms=None) -> Select:
    """A selection in which `survivors`, or else every candidate, is confirmed."""
    left = [c.name for c in study.candidates] if survivors is None else list(survivors)
    held = study.heldout_arms(left).items()
    frozen = {c.name: {name: choice(arm.preset, c.budget) for name, arm in held} for c in study.cells}
    gains = {c.name: "1/8" if c.name in left else "-1/8" for c in study.candidates}
    return Select(
        rule="max_mean_accuracy",
        scores={},
        chosen={},
        gains=gains,
        survivors=left,
        arms=frozen if arms is None else arms,
    )


def account(budget: int = 16, steps: int = 40, prompt_tokens: int = 10, delta: int = 4) -> Residency:
    """A true account of 1 layer and 2 heads, 8 bytes an entry."""
    schedule = Schedule("slack", budget, delta, "pinned")
    return walk(schedule, Footprint(heads=2, head_dim=2, itemsize=2), prompt_tokens, steps, layers=1)


def record(cell: str, arm: str, problem: str, correct: bool, *, sample: int = 0, residency=..., **rest) -> Record:
    held = account() if residency is ... else residency
    fields = {
        "study": "toy",
        "registration": ZERO,
        "phase": "heldout",
        "status": "finished",
        "prompt_tokens": 10,
        "output_tokens": 41,
        "output": "",
        "output_ids": [],
        **rest,
    }
    return Record(
        cell=cell,
        arm=arm,
        problem=problem,
        problem_digest=ZERO,
        sample=sample,
        seed="0" * 32,
        grade=GradeRecord(correct=correct, extracted=None, how="test", grader="test/1"),
        residency=None
        if held is None
        else ResidencyRecord.model_validate({k: v for k, v in held.to_json().items() if k != "chains"}),
        **fields,
    )


def answers(cell: str, arm: str, right: str, **rest) -> list[Record]:
    """One record per character: ``1`` right, ``0`` wrong, ``.`` no record. Problems are p0, p1, …"""
    return [record(cell, arm, f"p{i}", c == "1", **rest) for i, c in enumerate(right) if c != "."]


def ids(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]
