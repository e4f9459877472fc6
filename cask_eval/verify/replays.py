"""Whether replays are of their references' tokens, and their fidelity what their numbers per token give."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from cask_eval.decide.budgets import at_budget, footprint_of, schedule_of
from cask_eval.errors import RecordError
from cask_eval.fidelity import summarise
from cask_eval.ledger.events import ArmChoice
from cask_eval.occupancy import compressed_from
from cask_eval.protocol.model import REFERENCE
from cask_eval.records.model import ChainRecord, FidelityRecord, Record
from cask_eval.records.tokens import TokenFile, Trial, digest_of
from cask_eval.verify.check import Skip
from cask_eval.verify.evidence import Evidence, Role


class Reference(NamedTuple):
    """What a replay must have of its reference. `said` stands for status, output and token ids (`_said`)."""

    failed: bool
    prompt_tokens: int
    said: bytes


# (phase, model, problem, sample) → the reference.
References = dict[tuple[str, str, str, int], Reference]


def references(e: Evidence) -> References:
    """Every reference that there is; none where trials are judged by their own output."""
    if e.protocol is None or not e.protocol.fidelity:
        return {}
    models = {cell.name: cell.model for cell in e.protocol.reference_cells}
    return {
        (r.phase, models[r.cell], r.problem, r.sample): Reference(r.status == "failed", r.prompt_tokens, _said(r))
        for file in (e.dev, e.heldout)
        for r in (file.records if file else ())
        if r.cell in models and r.arm == REFERENCE
    }


def _said(part: Record | ChainRecord) -> bytes:
    return hashlib.sha256(repr((part.status, part.output, part.output_ids)).encode()).digest()


def replay_faults(e: Evidence, r: Record, given: References) -> Iterator[str]:
    """What is wrong with a trial as a replay of its reference."""
    assert e.protocol
    replay = e.protocol.fidelity and r.arm != REFERENCE
    if replay and r.status != "failed" and r.fidelity is None:
        yield "is a replay without fidelity"
    if r.fidelity is not None and (not replay or r.status == "failed"):
        yield "has fidelity, but is no replay that ran"
    if not replay or r.status == "failed":
        return
    reference = given.get((r.phase, r.cell.partition("/")[0], r.problem, r.sample))
    if reference is None or reference.failed:
        yield "is a replay, but its reference left no output"
        return
    for part in (r, *r.chains):
        if _said(part) != reference.said:
            yield "replays other tokens than its reference put out"
            return
    if r.prompt_tokens != reference.prompt_tokens:
        yield "replays another prompt than its reference had"
    elif r.fidelity and r.fidelity.whole.tokens != len(r.output_ids) * max(1, len(r.chains)):
        yield f"its fidelity is over {r.fidelity.whole.tokens} tokens, but {len(r.output_ids)} were replayed"


def measured(e: Evidence) -> Iterator[str]:
    """One line per replay whose record does not follow from its numbers per token, and a Skip where those are not
    here."""
    if e.protocol is None or not e.protocol.fidelity:
        return
    for role, file in (("dev", e.dev), ("heldout", e.heldout)):
        arms: dict[tuple[str, str], _Arm] = {}
        for r in file.records if file else ():
            if r.fidelity is not None:
                place = r.cell, r.arm
                if place not in arms:
                    arms[place] = _Arm(e, role, place)
                yield from arms[place].faults(r)
        for arm in arms.values():
            yield from arm.ending()


class _Arm:
    """The replays of one arm in one cell, one after the other, beside the file of their numbers."""

    def __init__(self, e: Evidence, role: Role, place: tuple[str, str]):
        self.evidence, self.role, self.where = e, role, "/".join((role, *place))
        self.seen: set[Trial] = set()
        self.file: TokenFile | None = None
        self.extra: set[Trial] = set()
        self.damage = ""
        path = e.arrays.get(role, {}).get(place)
        try:
            if path is not None:
                self.file = TokenFile(path)
                self.extra = self.file.trials
        except RecordError as error:
            self.file, self.damage = None, str(error)

    def faults(self, r: Record) -> Iterator[str]:
        self.seen.add((r.config, r.problem, r.sample))
        if self.file is None:
            return
        name = f"{self.where}/{r.config}/{r.problem}/{r.sample}"
        choice = _frozen(self.evidence, self.role, r)
        if choice is None:
            yield f"{name}: the ledger freezes no schedule for it"
            return
        try:
            yield from (f"{name}: {what}" for what in _trial(r, self.file, choice))
        except (RecordError, ValueError) as error:
            yield f"{name}: {error}"

    def ending(self) -> Iterator[str]:
        """What is to be said once all replays were seen."""
        if self.damage:
            yield f"{self.where}: {self.damage}"
        elif self.file is None:
            count = len(self.seen)
            yield Skip(f"{self.where}: its numbers per token are not here, so the fidelity of {count} trials is taken "
                       "as recorded")  # fmt: skip
        elif extra := self.extra - self.seen:
            yield f"{self.where}: {len(extra)} trials have numbers per token, but no record, such as {min(extra)}"


def _trial(r: Record, file: TokenFile, choice: ArmChoice) -> Iterator[str]:
    assert r.fidelity
    schedule, footprint = schedule_of(choice), footprint_of(choice)
    first = [compressed_from(part, footprint, r.prompt_tokens, r.output_ids) for part in schedule.split()]
    trial = r.config, r.problem, r.sample
    if (shape := file.shape(trial)) is None:
        yield "it has no numbers per token"
        return
    if shape != [len(first), len(r.output_ids)]:
        yield f"its numbers per token are {shape}, but {len(r.output_ids)} tokens were replayed in {len(first)} chains"
        return
    tokens = file.read(trial, first)
    assert tokens
    if (digest := digest_of(tokens)) != r.fidelity.arrays:
        yield "its numbers per token are not those that the record commits to"
    elif (found := FidelityRecord.of(summarise(tokens), digest)) != r.fidelity:
        yield f"its fidelity is not what its numbers per token give: {_difference(r.fidelity, found)}"


def _difference(stated: FidelityRecord, found: FidelityRecord) -> str:
    """The first number that differs, in words."""
    for part in ("whole", "after"):
        one, other = (getattr(f, part) for f in (stated, found))
        if one is None or other is None:
            if one != other:
                return f"{part} is {'missing' if one is None else 'given, though nothing was compressed'}"
            continue
        for name in type(one).model_fields:
            if getattr(one, name) != getattr(other, name):
                return f"{part}.{name} is {getattr(one, name)}, and {getattr(other, name)} follows"
    return f"first_mismatch is {stated.first_mismatch}, and {found.first_mismatch} follows"


def _frozen(e: Evidence, role: Role, r: Record) -> ArmChoice | None:
    """The arm as the ledger says that this trial was run; a step of a search at its own budget."""
    if role == "heldout":
        return e.select.arms.get(r.cell, {}).get(r.arm) if e.select else None
    row = e.dev_run.matched.get(r.cell, {}).get(r.arm, {}) if e.dev_run else {}
    config, _, budget = r.config.partition("@")
    choice = row.get(config)
    return at_budget(choice, int(budget)) if choice and budget.isdigit() and len(budget) < 12 else choice
