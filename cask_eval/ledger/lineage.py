"""Which of a study's held-out problems other studies of the same ledger had run before. What another ledger holds
cannot be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cask_eval.canonical import loads
from cask_eval.errors import CaskError
from cask_eval.ledger.events import Event
from cask_eval.ledger.state import StudyState, studies
from cask_eval.splits.model import Manifest
from cask_eval.workspace import Workspace

MAX_MANIFEST = 256 << 20

Role = Literal["dev", "heldout"]


@dataclass(frozen=True)
class Spent:
    """Another study that ran `shared` of the problems, as its `role` split; None where its split is not here. `early`:
    before the study in question was registered, so that what came of it may have shaped the protocol."""

    study: str
    role: Role
    event: Event
    shared: int | None
    path: str
    early: bool

    def text(self, count: int) -> str:
        verb = "tuned on" if self.role == "dev" else "consumed"
        if self.shared is None:
            return (
                f"study {self.study!r} {verb} {self.path} before, at {self.event.time}; that file is not here as "
                "registered, so it cannot be compared"
            )
        which = "the same held-out split" if self.shared == count else f"{self.shared} of these {count} problems"
        return f"study {self.study!r} {verb} {which} before, at {self.event.time}"


def manifests(space: Workspace, events: Sequence[Event], study: str) -> dict[tuple[str, Role], Manifest]:
    """The splits of the ledger's other studies, as far as they are here and are what was registered."""
    found: dict[tuple[str, Role], Manifest] = {}
    read: dict[str, tuple[Manifest, str] | None] = {}  # by path: a ledger may name one file any number of times
    for name, state in studies(events).items():
        for role, lock in (state.register[1].splits if state.register and name != study else {}).items():
            if lock.path not in read:
                read[lock.path] = _read(space, lock.path)
            if (here := read[lock.path]) and here[1] == lock.digest:
                found[name, role] = here[0]
    return found


def spent(
    events: Sequence[Event], state: StudyState, heldout: Manifest, others: Mapping[tuple[str, Role], Manifest]
) -> list[Spent]:
    """Who had run problems of the held-out split of `state` before it consumed them itself, or until now. `others`:
    `manifests`. Problems are the same when their normalised texts are."""
    assert state.register
    born = state.register[0].seq
    end = state.consume[0].seq if state.consume else len(events)
    mine = {item.text for item in heldout.items}
    out = []
    for name, other in studies(events).items():
        if name == state.study or not other.register:
            continue
        for role, event in (("dev", other.dev_run), ("heldout", other.consume)):
            lock = other.register[1].splits.get(role)
            if event is None or lock is None or event[0].seq > end:
                continue
            manifest = others.get((name, role))
            shared = len(mine & {item.text for item in manifest.items}) if manifest else None
            if shared is None and lock.merkle_root == state.register[1].splits["heldout"].merkle_root:
                shared = len(mine)
            if shared != 0:
                out.append(Spent(name, role, event[0], shared, lock.path, event[0].seq < born))
    return out


def _read(space: Workspace, rel: str) -> tuple[Manifest, str] | None:
    """Another study's manifest and its digest. What is wrong with it is that study's fault, not this one's."""
    try:
        path = space.resolve(rel)
        if path.is_file() and path.stat().st_size <= MAX_MANIFEST:
            manifest = Manifest.model_validate(loads(path.read_bytes()))
            return manifest, manifest.digest()
    except (OSError, RuntimeError, ValueError, CaskError):
        pass
    return None
