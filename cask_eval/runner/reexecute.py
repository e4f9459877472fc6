"""Held-out trials executed again by the reviewer, drawn so that nobody could know which."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from cask_eval.canonical import canonical
from cask_eval.errors import StateError
from cask_eval.ledger.state import StudyState
from cask_eval.protocol.model import REFERENCE
from cask_eval.records.model import Record
from cask_eval.records.store import same_evidence
from cask_eval.runner.study import drift, facts, open_study
from cask_eval.runner.trials import Batch, Bench, Replays
from cask_eval.workspace import Workspace


@dataclass(frozen=True)
class Again:
    """`done` trials of `total` were executed again; `differ` names those that came out otherwise. `machine` says in
    what this one is not the machine that the study was registered on, `subject` in what that which was executed is not
    what was registered: models, methods, problems."""

    done: int
    total: int
    differ: tuple[str, ...]
    machine: tuple[str, ...]
    subject: tuple[str, ...]


def drawn(records: Sequence[Record], draw: str, count: int) -> list[Record]:
    """`count` of the trials, failed ones too: the first in the order of a digest of `draw` and the trial's key."""

    def rank(r: Record) -> bytes:
        return hashlib.sha256(canonical([draw, *r.key])).digest()

    return heapq.nsmallest(count, records, key=rank)


def reexecute(
    space: Workspace, state: StudyState, records: Sequence[Record], draw: str, count: int, device: str
) -> Again:
    """Execute `count` of the held-out `records` again and compare all that is evidence in them. `draw` decides which;
    it must hold something that the author could not know, because with a ledger's head alone an author can try last
    events until the draw misses what was forged. Raises StateError when the study has frozen nothing that could run,
    and whatever `open_study` and `Bench` raise."""
    if state.register is None or state.select is None or not records:
        raise StateError(f"study {state.study!r} has no held-out trials that could be executed again")
    event, register = state.register
    study = open_study(space, space.resolve(register.protocol_path))
    bench = Bench(study, event.hash, state.seed_root(), device)
    chosen = drawn(records, draw, count)
    every = {r.key for r in records}
    cells = {c.name: c for c in (*study.protocol.cells, *study.protocol.reference_cells)}
    models = {c.name: c.model for c in study.protocol.reference_cells}
    references: dict[str, dict[tuple[str, int], Record]] = defaultdict(dict)
    for r in records:
        if r.arm == REFERENCE and r.cell in models:
            references[models[r.cell]][r.problem, r.sample] = r
    differ: list[str] = []
    for (cell, arm), group in groupby(sorted(chosen, key=lambda r: r.key), key=lambda r: (r.cell, r.arm)):
        wanted = {r.key: r for r in group}

        def compare(found: list[Record], wanted=wanted) -> None:
            for r in found:
                if not same_evidence(r, wanted[r.key]):
                    differ.append(f"{r.cell}/{r.arm}/{r.problem}/{r.sample} came out otherwise")

        batch = Batch("heldout", cells[cell], arm, "", state.select[1].arms[cell][arm])
        given = None
        if study.protocol.fidelity and arm != REFERENCE:
            given = Replays(references[batch.cell.model], lambda _: None)
        bench.run(batch, every - wanted.keys(), compare, lambda *_: None, given)
    other = [c.field.removeprefix("locked.").split(".") for c in drift(register, facts(study, device, []))]
    machine = dict.fromkeys(name for top, *rest in other if top == "environment" for name in rest[:1])
    subject = dict.fromkeys(top for top, *_ in other if top != "environment")
    return Again(len(chosen), len(records), tuple(differ), tuple(machine), tuple(subject))
