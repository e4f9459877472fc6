"""Which problems of a held-out split had been looked at before: by other studies of the same ledger, or by the same
study as dev problems under a registration that was amended. What another ledger holds cannot be seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from cask_eval.canonical import loads
from cask_eval.errors import CaskError
from cask_eval.ledger.events import Event, SplitLock
from cask_eval.ledger.state import studies
from cask_eval.splits.disjoint import pairs
from cask_eval.splits.model import Manifest
from cask_eval.workspace import Workspace

MAX_MANIFEST = 256 << 20

Role = Literal["dev", "heldout"]


@dataclass(frozen=True)
class Look:
    """From `event` on, `study` may have looked at what came of the problems of a split. For dev that is the event that
    locks the split, because a run that is cut off leaves no event; `ran` says that one did end."""

    study: str
    role: Role
    event: Event
    lock: SplitLock
    ran: bool


@dataclass(frozen=True)
class Shared:
    """`count` problems of the held-out split in question are in the split of `look` too; None where that split is not
    here. `early`: before the study in question was registered, so that what came of it may have shaped the protocol."""

    look: Look
    count: int | None
    early: bool

    def text(self, of: int) -> str:
        """One sentence; the held-out split has `of` problems."""
        look = self.look
        verb = "consumed" if look.role == "heldout" else "tuned on" if look.ran else "had as its dev split"
        when = f"{'before' if self.early else 'later'}, at {look.event.time}"
        if self.count is None:
            gone = "that file is not here as registered, so it cannot be compared"
            return f"study {look.study!r} {verb} {look.lock.path} {when}; {gone}"
        which = "the same problems" if self.count == of else f"{self.count} of these {of} problems"
        return f"study {look.study!r} {verb} {which} {when}"


def looks(events: Sequence[Event]) -> Iterator[Look]:
    """Every split that a study of the ledger may have looked at, under each of its registrations."""
    for study, state in studies(events).items():
        for era in state.eras:
            event, locked = era.register
            if lock := locked.splits.get("dev"):
                yield Look(study, "dev", event, lock, era.records is not None)
        if state.consume and state.register and (lock := state.register[1].splits.get("heldout")):
            yield Look(study, "heldout", state.consume[0], lock, True)


def manifests(space: Workspace, events: Sequence[Event]) -> dict[str, Manifest]:
    """Digest → split, of all that the ledger's studies may have looked at, as far as they are here."""
    found: dict[str, Manifest] = {}
    read: set[str] = set()  # a ledger may name one file any number of times
    for path in (str(PurePosixPath(look.lock.path)) for look in looks(events)):
        if path not in read:
            read.add(path)
            if here := _read(space, path):
                found[here[0]] = here[1]
    return found


def shared(
    events: Sequence[Event], study: str, heldout: Manifest, splits: Mapping[str, Manifest]
) -> Iterator[Shared]:
    """Who had, or has, problems of the held-out split of `study`. Of other studies all looks count, of its own the dev
    splits of every registration that it had. `splits`: `manifests`. Problems are the same when their normalised texts
    are or their sketches nearly; inside one study ids count too."""
    state = studies(events).get(study)
    born = state.register[0].seq if state and state.register else len(events)
    seen: set[tuple[str, Role, str]] = set()
    counts: dict[tuple[str, bool], int] = {}
    for look in looks(events):
        key = (look.study, look.role, look.lock.digest)
        own = look.study == study
        if key in seen or (own and look.role == "heldout"):
            continue
        seen.add(key)
        if look.lock.merkle_root == heldout.merkle_root:
            count: int | None = len(heldout.items)
        elif manifest := splits.get(look.lock.digest):
            same = (look.lock.digest, own)
            if same not in counts:
                counts[same] = len({p.item.id for p in pairs(manifest, heldout, ids=own)})
            count = counts[same]
        else:
            count = None
        if count != 0:
            yield Shared(look, count, own or look.event.seq < born)


def _read(space: Workspace, rel: str) -> tuple[str, Manifest] | None:
    """A study's manifest, with its digest. What is wrong with another study's is that study's fault, not this one's."""
    try:
        path = space.resolve(rel)
        if path.is_file() and path.stat().st_size <= MAX_MANIFEST:
            manifest = Manifest.model_validate(loads(path.read_bytes()))
            return manifest.digest(), manifest
    except (OSError, RuntimeError, ValueError, CaskError):
        pass
    return None
