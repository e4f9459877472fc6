from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import fields, replace
from fractions import Fraction
from functools import lru_cache

from cask_eval.canonical import leaf_hash
from cask_eval.decide.budgets import (
    EVALUATIONS,
    Lengths,
    Measure,
    at_budget,
    entries,
    footprint_of,
    matched_choice,
    reference_choice,
    schedule_of,
    search_fault,
)
from cask_eval.errors import MethodError
from cask_eval.footprint import Footprint
from cask_eval.ledger.events import ArmChoice, ModelLock
from cask_eval.protocol.keys import is_step, step_config
from cask_eval.records.model import Record
from cask_eval.records.store import canonical_lines
from cask_eval.residency import Residency, expected, walk
from cask_eval.schedule import Schedule
from cask_eval.stages import Stages, stages
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence

_NEEDS = ("register", "protocol", "dev_run", "select", "dev", "heldout")

# (phase, cell, arm, configuration) → what the ledger freezes there.
_Frozen = dict[tuple[str, str, str, str], ArmChoice]


@check("V16", "caches measured and matched", *_NEEDS)
def v16(e: Evidence) -> Iterator[str]:
    """Every account adds up to the byte, has its model's geometry and is the one that the frozen schedule must leave,
    given what was generated; the matched budgets follow from the dev records; the verdicts on matching follow from the
    held-out ones."""
    assert e.register and e.protocol
    locks = {m.name: m for m in e.register.models}
    cells = [*e.protocol.cells, *e.protocol.reference_cells]
    models = {cell.name: locks[cell.model] for cell in cells if cell.model in locks}
    frozen = {}
    for key, choice in _frozen(e).items():
        faults = list(_lock_faults(choice, models.get(key[1])))
        yield from (f"{'/'.join(filter(None, key))}: {what}" for what in faults)
        if not faults:
            frozen[key] = choice
    yield from _accounts(e, models, frozen)
    dev = _Dev(e, frozen)
    yield from _budgets(e, frozen, dev)
    yield from _full(e, frozen, dev)
    yield from _verdicts(e)


def _frozen(e: Evidence) -> _Frozen:
    assert e.dev_run and e.select
    out = {
        ("dev", cell, arm, config): choice
        for cell, arms in e.dev_run.matched.items()
        for arm, row in arms.items()
        for config, choice in row.items()
    }
    out |= {
        (phase, cell, arm, step_config(config, step.budget)): at_budget(choice, step.budget)
        for (phase, cell, arm, config), choice in out.items()
        for step in choice.searched[:EVALUATIONS]  # more than these are a fault of the search
    }
    return out | {
        ("heldout", cell, arm, ""): choice for cell, arms in e.select.arms.items() for arm, choice in arms.items()
    }


def _lock_faults(choice: ArmChoice, model: ModelLock | None) -> Iterator[str]:
    """Why a frozen choice cannot be replayed."""
    if model is None:
        yield "its model is not locked"
        return
    try:
        schedule_of(choice)
        footprint = footprint_of(choice)
    except ValueError as error:
        yield f"its schedule or footprint is none: {error}"
        return
    sizes = (footprint.heads, footprint.head_dim, footprint.itemsize)
    if sizes != (model.layers * model.kv_heads, model.head_dim, model.itemsize):
        yield "its footprint is of another geometry than the locked model's"


def _accounts(e: Evidence, models: dict[str, ModelLock], frozen: _Frozen) -> Iterator[str]:
    assert e.dev and e.heldout
    prompts: dict[tuple[str, str], int] = {}
    loose: Counter[str] = Counter()
    for r in itertools.chain(e.dev.records, e.heldout.records):
        where = f"{r.phase}/{r.cell}/{r.arm}/{r.config}/{r.problem}/{r.sample}"
        choice, model = frozen.get((r.phase, r.cell, r.arm, r.config)), models.get(r.cell)
        if choice is None or model is None:
            loose["/".join(filter(None, (r.phase, r.cell, r.arm, r.config)))] += 1
            continue
        first = (
            prompts.setdefault((model.name, r.problem), r.prompt_tokens) if r.status != "failed" else r.prompt_tokens
        )
        if r.prompt_tokens != first:
            yield f"{where}: {r.prompt_tokens} prompt tokens, another trial of this problem had {first}"
        for what in _account(r, model, choice):
            yield f"{where}: {what}"
    for name, count in loose.items():
        yield f"{name}: {count} records, but the ledger freezes no schedule for them that could be replayed"


def _account(r: Record, model: ModelLock, choice: ArmChoice) -> Iterator[str]:
    if r.prompt_tokens > model.max_prompt_tokens:
        yield f"{r.prompt_tokens} prompt tokens, but the model lock allows {model.max_prompt_tokens}"
    account = r.account()
    if account is None:
        if r.stages is not None or r.regions is not None:
            yield "it has no account, and says what its events did all the same"
        return
    yield from _kept(r, account)
    if r.regions and not r.regions.empty <= r.regions.bins:
        yield f"{r.regions.empty} of {r.regions.bins} regions are said to be wiped out"
    schedule, footprint = schedule_of(choice), footprint_of(choice)
    if r.status == "failed":
        yield "it failed, and has an account all the same"
    elif len(r.chains) != (schedule.chains if schedule.chains > 1 else 0):
        yield f"it has {len(r.chains)} chains, the frozen schedule {schedule.chains}"
    else:
        follows = _follows(schedule, footprint, r, model.layers)
        if account != follows:
            yield f"the account is not the one that the frozen schedule leaves: {_difference(account, follows)}"
        elif r.stages is not None and r.stages.stages() != _stages(schedule, r):
            yield "what its events are said to have done to prompt and output is not what the frozen schedule does"


def _follows(schedule: Schedule, footprint: Footprint, r: Record, layers: int) -> Residency:
    """The account that the schedule leaves, given what was generated."""
    if schedule.content_driven:
        outputs = [chain.output_ids for chain in r.chains] or [r.output_ids]
        return expected(schedule, footprint, r.prompt_tokens, outputs, layers)
    return _walked(schedule, footprint, r.prompt_tokens, max(len(r.output_ids) - 1, 0), layers)


def _stages(schedule: Schedule, r: Record) -> Stages:
    """What the schedule's events do to prompt and output, given what was generated."""
    outputs = [chain.output_ids for chain in r.chains] or [r.output_ids]
    if schedule.content_driven:
        return stages(schedule, r.prompt_tokens, outputs)
    return _counted(schedule, r.prompt_tokens, tuple(map(len, outputs)))


@lru_cache(maxsize=4096)
def _counted(schedule: Schedule, prompt: int, lengths: tuple[int, ...]) -> Stages:
    # The ids do not matter, only how many there are.
    return stages(schedule, prompt, [range(n) for n in lengths])


@lru_cache(maxsize=4096)
def _walked(schedule: Schedule, footprint: Footprint, prompt: int, steps: int, layers: int) -> Residency:
    return walk(schedule, footprint, prompt, steps, layers)


def _difference(account: Residency, follows: Residency) -> str:
    """The first field that differs, in words."""
    for name in (f.name for f in fields(Residency)):
        stated, due = getattr(account, name), getattr(follows, name)
        if stated != due and name in ("events", "chains"):
            where = next((i for i, (a, b) in enumerate(zip(stated, due)) if a != b), min(len(stated), len(due)))
            return f"number {where + 1} of {len(stated)} {name}, where {len(due)} follow"
        if stated != due:
            return f"{name} is {stated}, but {due} follows"
    return "nothing"


def _kept(r: Record, account: Residency) -> Iterator[str]:
    """What any head kept must be possible beside the sums over all heads, which budgets may be spread over unevenly."""
    after = [left for part in account.chains or [account] for _, _, left in part.events]
    low, high, others = r.kept_min, r.kept_max, account.heads - 1
    if low is None or high is None or not after:
        if after or low is not None or high is not None:
            yield "kept_min and kept_max must be given where there were events, and only there"
        return
    # Beside the head that kept most no other kept fewer than `low`, and beside the one that kept fewest none more than
    # `high`.
    possible = (
        low * account.heads <= min(after)
        and high + others * low <= max(after)
        and min(after) <= low + others * high
        and max(after) <= high * account.heads
    )
    if not possible:
        yield f"heads are said to have kept {low} to {high}, which the events rule out"


class _Dev:
    """What the dev records say of budgets, gathered in one pass: of the baseline of each cell, of each reference cell,
    and of each configuration whose budget was searched."""

    def __init__(self, e: Evidence, frozen: _Frozen):
        assert e.protocol and e.dev
        full = {cell.name for cell in e.protocol.reference_cells}
        # What is searched, and what was run on the way there.
        searched = {key[1:] for key, choice in frozen.items() if key[0] == "dev" and choice.searched}
        on_the_way = {(*key[1:3], key[3].partition("@")[0]) for key in frozen if is_step(key[3])}
        searched = {(cell, arm, config) for cell, arm, config in searched if not is_step(config)} | on_the_way
        self._measures: dict[tuple[str, ...], Measure] = defaultdict(Measure)
        self._trials: dict[tuple[str, ...], list[tuple[tuple, bytes]]] = defaultdict(list)
        for r in e.dev.records:
            if r.cell in full:
                self._measures[r.cell,].add(r)
            elif r.arm == "baseline":
                self._measures[r.cell, "baseline"].add(r)
            elif (r.cell, r.arm, r.config.partition("@")[0]) in searched:
                self._measures[r.cell, r.arm, r.config].add(r)
                self._trials[r.cell, r.arm, r.config].append(_apart(r))

    def measured(self, *place: str) -> tuple[Lengths, Fraction]:
        """As `decide.budgets.measured`. Raises ValueError as that."""
        return self._measures[place].result()

    def trials(self, *place: str) -> list[tuple[tuple, bytes]]:
        """The trials without the name of the configuration, in the order of their keys."""
        return sorted(self._trials[place])


def _apart(r: Record) -> tuple[tuple, bytes]:
    """What stands for a trial when its configuration is not looked at."""
    own = r.model_copy(update={"config": "", "measures": {}})
    return own.key, leaf_hash(canonical_lines(own)[1])


def _budgets(e: Evidence, frozen: _Frozen, dev: _Dev) -> Iterator[str]:
    assert e.protocol
    candidates = {c.name for c in e.protocol.candidates}
    for cell in e.protocol.cells:
        lengths, mean = dev.measured(cell.name, "baseline")
        if ("dev", cell.name, "baseline", "") not in frozen:
            yield f"{cell.name}: the dev run froze no baseline that could be replayed"
        for (phase, where, arm, config), choice in frozen.items():
            if where != cell.name or is_step(config):  # a step is judged with the configuration that it led to
                continue
            fault = (
                _reference_fault(choice, cell.budget, mean)
                if arm == "baseline"
                else _match_fault(choice, cell.budget, lengths, mean, arm in candidates)
            )
            if phase == "dev" and choice.searched and not fault:
                fault = _search_fault(choice, dev, (cell.name, arm, config))
            if fault:
                yield f"{'/'.join(filter(None, (phase, cell.name, arm, config)))}: {fault}"


def _full(e: Evidence, frozen: _Frozen, dev: _Dev) -> Iterator[str]:
    """References come from a cache that nothing is taken out of."""
    assert e.protocol
    for cell in e.protocol.reference_cells:
        mean = dev.measured(cell.name)[1]
        for key, choice in frozen.items():
            if key[1] != cell.name:
                continue
            schedule, footprint = schedule_of(choice), footprint_of(choice)
            if schedule.trigger != "never" or footprint.packing:
                yield f"{'/'.join(filter(None, key))}: its cache is compressed, so it is no reference"
            elif choice != reference_choice(choice.preset, choice.params, schedule, footprint, mean):
                yield f"{cell.name}: the dev cache is {choice.dev_mean}, the records give {entries(mean)}"


def _reference_fault(choice: ArmChoice, nominal: int, mean: Fraction) -> str | None:
    if choice.schedule.budget != nominal:
        return f"the baseline ran at budget {choice.schedule.budget}, not at the registered one"
    if choice != reference_choice(choice.preset, choice.params, schedule_of(choice), footprint_of(choice), mean):
        return f"the baseline's dev cache is {choice.dev_mean}, the records give {entries(mean)}"
    return None


def _match_fault(choice: ArmChoice, nominal: int, lengths: Lengths, mean: Fraction, candidate: bool) -> str | None:
    """Why a budget is not the one that follows from the baseline's dev trials and the means that a search states."""
    schedule, footprint = schedule_of(choice), footprint_of(choice)
    try:
        draft = matched_choice(
            choice.preset, choice.params, replace(schedule, budget=nominal), footprint, lengths, mean
        )
    except (MethodError, ValueError) as error:
        return f"it cannot be matched: {error}"
    if not (schedule.content_driven and candidate):
        if choice == draft:
            return None
        return (
            f"the matched budget is {schedule.budget} at {choice.dev_mean} entries, the dev records give "
            f"{draft.schedule.budget} at {draft.dev_mean}"
        )
    return search_fault(draft, choice)


def _search_fault(choice: ArmChoice, dev: _Dev, place: tuple[str, str, str]) -> str | None:
    """Why the means that a search states are not those of the dev records. `place`: cell, arm and configuration."""
    cell, arm, config = place
    for step in choice.searched:
        try:
            found = entries(dev.measured(cell, arm, step_config(config, step.budget))[1])
        except ValueError:
            return f"there are no dev trials at budget {step.budget}, which the search went through"
        if step.dev_mean != found:
            return (
                f"the search is said to have met a dev cache of {step.dev_mean} at budget {step.budget}, the records "
                f"give {found}"
            )
    if dev.trials(*place) != dev.trials(cell, arm, step_config(config, choice.schedule.budget)):
        return "its dev trials are not those of the budget that the search ended at"
    return None


def _verdicts(e: Evidence) -> Iterator[str]:
    if e.document is None or e.derived is None or isinstance(e.derived, str):
        return
    derived = {(c.candidate, c.cell): c.matched.verdict for c in e.derived.cells}
    for c in e.document.cells:
        found = derived.get((c.candidate, c.cell), c.matched.verdict)
        if c.matched.verdict != found:
            yield f"{c.candidate} {c.cell}: the caches are called {c.matched.verdict}, the records give {found}"
