"""Tuning, apart from running it: which arms the dev split runs, and what the registered rule freezes. The rule and the
arithmetic are those of `cask_eval.decide`, which the verifier runs again; this adds the methods' own schedules and
footprints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from cask_eval.decide import selection
from cask_eval.decide.budgets import (
    Lengths,
    matched_choice,
    measured,
    reference_choice,
    schedule_of,
    searched_choice,
)
from cask_eval.decide.selection import arm_of
from cask_eval.engine.contract import Geometry
from cask_eval.engine.method import Encode, Method
from cask_eval.engine.registry import load as load_preset
from cask_eval.errors import MethodError, StateError
from cask_eval.footprint import Footprint
from cask_eval.ledger.events import ArmChoice, DevRun, ModelLock, Select
from cask_eval.protocol.keys import dev_runs
from cask_eval.protocol.model import FULL, Cell, Protocol
from cask_eval.records.model import Record
from cask_eval.runner import models
from cask_eval.runner.study import Study
from cask_eval.schedule import Schedule


@dataclass(frozen=True)
class Ground:
    """What the arms of a cell run on: the locked model, and text → token ids for schedules that read the text."""

    lock: ModelLock
    encode: Encode

    @property
    def geometry(self) -> Geometry:
        """The sizes that footprints follow from; there are no frequencies in it, so nothing can be scored with it."""
        lock, number = self.lock, {1: torch.int8, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
        return Geometry(
            layers=lock.layers,
            query_heads=lock.query_heads,
            kv_heads=lock.kv_heads,
            head_dim=lock.head_dim,
            inv_freq=torch.empty(0, dtype=torch.float64),
            scaling=1.0,
            dtype=number[lock.itemsize],
            name=lock.name,
        )


def grounds(study: Study, locks: Iterable[ModelLock], device: str) -> dict[str, Ground]:
    """Model name → its ground. A model is loaded only when a schedule asks for token ids."""

    def encoder(name: str) -> Encode:
        model = next(m for m in study.protocol.models if m.name == name)
        return lambda text: models.encoder(models.loaded(model, study.workspace, device)[1])(text)

    return {lock.name: Ground(lock, encoder(lock.name)) for lock in locks}


def baseline(protocol: Protocol, cell: Cell, ground: Ground, mean: Fraction = Fraction(0)) -> ArmChoice:
    """The baseline at its nominal budget; `mean` is its dev cache once that is known."""
    preset, params = arm_of(protocol, "baseline", "")
    method = load_preset(preset).make(preset, params)
    return reference_choice(preset, params, *_needs(method, cell.budget, ground), mean)


def full(cell: Cell, ground: Ground, mean: Fraction = Fraction(0)) -> ArmChoice:
    """The full cache, which references are generated with; `mean` is its dev cache once that is known."""
    method = load_preset(FULL).make(FULL, {})
    return reference_choice(FULL, {}, *_needs(method, 1, ground), mean)


def measured_full(cell: Cell, ground: Ground, records: list[Record]) -> ArmChoice:
    """The same with its dev cache. Raises StateError when no reference left an account."""
    return full(cell, ground, _reference(cell, records, "the full cache")[1])


def match(
    protocol: Protocol, cell: Cell, ground: Ground, baseline_records: list[Record]
) -> dict[str, dict[str, ArmChoice]]:
    """`DevRun.matched` of one cell: the baseline, and every configuration of each candidate at its matched budget; of a
    candidate whose cache depends on what it generates, at the budget where `searched` starts. Raises StateError when no
    baseline trial left an account, and MethodError when some arm, a control included, cannot be matched or could not
    hold the longest prompt there: better now than after the held-out split is consumed."""
    lengths, mean = _reference(cell, baseline_records)
    out = {"baseline": {"": baseline(protocol, cell, ground, mean)}}
    for arm, names in dev_runs(protocol).items():
        if arm != "baseline":
            out[arm] = {config: _matched(protocol, cell, ground, arm, config, lengths, mean) for config in names}
    controls(protocol, cell, ground, baseline_records)
    return out


def controls(protocol: Protocol, cell: Cell, ground: Ground, baseline_records: list[Record]) -> dict[str, ArmChoice]:
    """The controls at their matched budgets. They do not run on the dev split, so nothing is searched: one whose cache
    depends on what it generates has the budget that the baseline's lengths suggest. Raises as `match`."""
    lengths, mean = _reference(cell, baseline_records)
    return {c.name: _matched(protocol, cell, ground, c.name, "", lengths, mean) for c in protocol.controls}


def searched(
    cell: Cell, ground: Ground, draft: ArmChoice, evaluate: Callable[[ArmChoice], Iterable[Record]]
) -> ArmChoice:
    """A candidate's configuration at the budget that the search ends at (`draft` itself, if its cache follows from
    lengths). `evaluate` runs the dev trials of the choice that it is given, as far as they have not run, and returns
    their records. Raises MethodError when a budget on the way cannot hold the longest prompt, StateError when all
    trials of a budget failed."""

    def mean(choice: ArmChoice) -> Fraction:
        _check(cell, ground, choice.preset, choice, Fraction(choice.reference_mean))
        records = list(evaluate(choice))
        try:
            return measured(records)[1]
        except ValueError:
            raise StateError(
                f"cell {cell.name}: every dev trial of {choice.preset} at budget {choice.schedule.budget} failed, so "
                f"its budget cannot be searched{_first_failure(records)}"
            ) from None

    return searched_choice(draft, mean)


def select(
    protocol: Protocol,
    dev_ids: list[str],
    read: Callable[..., Iterable[Record]],
    dev: DevRun,
    grounds: Mapping[str, Ground],
) -> Select:
    """The registered rules applied to the dev records, and every held-out arm frozen with its matched budget. `read`
    gives the records, or those of a cell and an arm, as `RecordStore.read` does: there may be more than memory
    holds."""
    frozen = {}
    for cell in protocol.cells:
        own = list(read(cell.name, "baseline"))
        frozen[cell.name] = controls(protocol, cell, grounds[cell.model], own)
    return selection.freeze(protocol, selection.select(protocol, read(), dev_ids), dev.matched, frozen)


def _reference(cell: Cell, records: list[Record], arm: str = "the baseline") -> tuple[Lengths, Fraction]:
    try:
        return measured(records)
    except ValueError:
        raise StateError(
            f"cell {cell.name}: every dev trial of {arm} failed, so there is no cache to match"
            + _first_failure(records)
        ) from None


def _first_failure(records: list[Record]) -> str:
    fault = next((r.failure for r in records if r.failure), None)
    return f"; the first said {fault.error}: {fault.message}" if fault else ""


def _matched(
    protocol: Protocol, cell: Cell, ground: Ground, arm: str, config: str, lengths: Lengths, mean: Fraction
) -> ArmChoice:
    preset, params = arm_of(protocol, arm, config)
    method = load_preset(preset).make(preset, params)
    try:
        schedule, footprint = _needs(method, cell.budget, ground)
        choice = matched_choice(preset, params, schedule, footprint, lengths, mean)
    except MethodError as error:
        raise MethodError(f"cell {cell.name}, arm {arm}: {error}") from None
    _check(cell, ground, arm, choice, mean)
    return choice


def _needs(method: Method, budget: int, ground: Ground) -> tuple[Schedule, Footprint]:
    return method.schedule(budget, ground.encode), method.footprint(ground.geometry)


def _check(cell: Cell, ground: Ground, arm: str, choice: ArmChoice, mean: Fraction) -> None:
    """The method can run as frozen, and schedules there what the solver assumed."""
    method, budget = load_preset(choice.preset).make(choice.preset, dict(choice.params)), choice.schedule.budget
    where = f"cell {cell.name}, arm {arm}, matched from budget {cell.budget} to"
    try:
        method.check(ground.lock.max_prompt_tokens, budget)
    except MethodError as error:
        raise MethodError(f"{where} the baseline's mean cache of {float(mean):.1f}: {error}") from None
    nominal = replace(method.schedule(cell.budget, ground.encode), budget=budget)
    if method.schedule(budget, ground.encode) != nominal or schedule_of(choice) != nominal:
        raise MethodError(f"{where} {budget}: the method changes more of its schedule than the budget")
