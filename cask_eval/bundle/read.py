"""Open a bundle that somebody sent, and verify it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from cask_eval import jsonl
from cask_eval.bundle import form
from cask_eval.bundle.contents import INDEX, MAX_INDEX, README, Asked, Index, index_of
from cask_eval.bundle.errors import BundleError
from cask_eval.canonical import digest_file
from cask_eval.errors import CaskError
from cask_eval.ledger.log import audit
from cask_eval.workspace import Workspace

T = TypeVar("T")


def is_bundle(path: Path) -> bool:
    """Whether this is meant as a bundle: a zip file, by its name or its first bytes, or an unpacked one."""
    if path.is_dir():
        return (path / INDEX).is_file()
    if not path.is_file():
        return False
    if path.suffix.lower() == ".zip":
        return True
    with open(path, "rb") as f:
        return f.read(4) == b"PK\x03\x04"


def examine(path: Path, look: Callable[[Workspace, str], T], study: str | None = None) -> T:
    """What `look` finds in a bundle, given its workspace and its study, or the one that is named.

    A zip is unpacked into a folder that is gone afterwards. Raises BundleError when the bundle is not whole, or, once
    `look` is done, when a zip holds more than it asked for.
    """
    with (_folder(path) if path.is_dir() else _unpacked(path)) as (space, index):
        _headed(space, index, path)
        found = look(space, study or index.study)
        # What somebody unpacked may lie beside notes of their own; a zip is as it was sent.
        extra = set() if path.is_dir() else set(index.files) - {README} - space.asked
        if extra and study in (None, index.study):
            raise BundleError(
                f"{path}: holds {min(extra)!r:.100}, which the ledger does not name; ask for a bundle as "
                "`cask-eval export` writes it"
            )
        return found


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[Asked, Index]]:
    with open(path, "rb") as f, tempfile.TemporaryDirectory(prefix="cask-eval-") as folder:
        members = form.read(f, str(path))
        index = _first(f, members[0], path)
        if unlisted := {m.name for m in members[1:]} ^ set(index.files):
            raise BundleError(f"{path}: {min(unlisted)!r:.100} is not both in the zip and in {INDEX}; fetch it again")
        for member in members:
            _extract(f, member, index, Path(folder), path)
        yield Asked(folder), index


def _first(f: BinaryIO, member: form.Member, path: Path) -> Index:
    if member.name != INDEX or member.size > MAX_INDEX:
        raise BundleError(f"{path}: does not begin with {INDEX} of at most {MAX_INDEX} bytes; this is no bundle")
    return index_of(b"".join(form.blocks(f, member, str(path))), f"{path}: {INDEX}")


def _extract(f: BinaryIO, member: form.Member, index: Index, folder: Path, path: Path) -> None:
    target = folder / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    sha = hashlib.sha256()
    with open(target, "xb") as out:
        for block in form.blocks(f, member, str(path)):
            sha.update(block)
            out.write(block)
    _same(member.name, "sha256:" + sha.hexdigest(), index, path)


@contextmanager
def _folder(path: Path) -> Iterator[tuple[Asked, Index]]:
    place = path / INDEX
    if place.is_symlink() or place.stat().st_size > MAX_INDEX:
        raise BundleError(f"{place}: is a link, or has more than {MAX_INDEX} bytes; this is no bundle")
    index = index_of(place.read_bytes(), str(place))
    space = Workspace(path)
    for name in index.files:
        try:
            file = space.resolve(name)
        except (CaskError, OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
            raise BundleError(f"{path}: {error}") from None
        if not file.is_file():
            raise BundleError(f"{path}: {name} is not there; unpack the bundle again")
        _same(name, digest_file(file), index, path)
    yield Asked(path), index


def _same(name: str, digest: str, index: Index, path: Path) -> None:
    if name != INDEX and digest != index.files[name]:
        raise BundleError(f"{path}: {name} is not the file that was exported, its digest is {digest}; fetch it again")


def _headed(space: Workspace, index: Index, path: Path) -> None:
    events = audit(line for line in jsonl.read(space.ledger).lines if line)[0]
    head = events[-1].hash if events else None
    if head != index.head:
        raise BundleError(f"{path}: {INDEX} names the head {index.head}, but the ledger's is {head}; fetch it again")
