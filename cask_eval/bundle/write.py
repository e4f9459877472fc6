"""Export a study as a bundle."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cask_eval.bundle import form
from cask_eval.bundle.contents import INDEX, README, Asked, Index
from cask_eval.bundle.errors import BundleError
from cask_eval.bundle.names import clash, fault
from cask_eval.canonical import digest_bytes
from cask_eval.errors import CaskError, StateError
from cask_eval.verify.evidence import Evidence
from cask_eval.workspace import Workspace

_README = """\
The evidence of the study {study}: everything that its verification reads, and nothing else.

Ledger head: {head}

Check that the decision follows from what was registered. This needs no GPU, no torch and no network:

    pip install cask-eval
    cask-eval verify THIS.zip

If you know the head from elsewhere (a paper, a note, a repository), then compare it; the one above proves nothing,
because it comes with the bundle:

    cask-eval verify THIS.zip --head sha256:...

Unpacked, the bundle is a workspace: `cask-eval verify FOLDER` checks it too, and `cask-eval -C FOLDER report {study}`
writes the report again. Models and the texts of the problems are not part of it. The ledger is that of all studies in
the workspace, because its lines hang together; of the others there are at most the lists of problems.

What is inside (`sha256sum -c` takes these lines):

{files}
"""


@dataclass(frozen=True)
class Exported:
    """What was written: `size` in bytes, `digest` of the whole file, `head` of the ledger, `files` beside the index."""

    path: Path
    size: int
    digest: str
    head: str
    files: tuple[str, ...]


def export(space: Workspace, study: str, path: Path, *, force: bool = False) -> Exported:
    """Write the bundle of `study` to `path`; it is whole or it is not there.

    Raises StateError when a file that the ledger names is missing, CaskError when one cannot be bundled or when `path`
    exists (with `force`, when it is no zip file).
    """
    _free(path, force)
    asked = Asked(space.root)
    evidence = Evidence.load(asked, study)
    _complete(evidence)
    sources = {name: space.root / name for name in sorted(asked.asked) if os.path.lexists(space.root / name)}
    _bundled(space, sources)

    sums = {name: _sum(lambda p=source: _blocks(p)) for name, source in sources.items()}
    head = evidence.events[-1].hash
    lines = "\n".join(f"{s.sha256.removeprefix('sha256:')}  {name}" for name, s in sums.items())
    readme = _README.format(study=study, head=head, files=lines).encode()
    files = {README: digest_bytes(readme)} | {name: s.sha256 for name, s in sums.items()}
    index = Index(study=study, head=head, files=dict(sorted(files.items())))
    texts = {INDEX: json.dumps(index.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"}
    texts[README] = readme

    draft = path.with_name(path.name + ".part")
    try:
        with open(draft, "wb") as f:
            _write(f, texts, sources, sums)
            f.flush()
            os.fsync(f.fileno())
        written = _sum(lambda: _blocks(draft))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return Exported(path, written.size, written.sha256, head, tuple(index.files))


def _write(f: BinaryIO, texts: dict[str, bytes], sources: dict[str, Path], sums: dict[str, _Sum]) -> None:
    members: list[form.Member] = []
    at = 0
    for name in (*texts, *sources):
        read: Callable[[], Iterator[bytes]] = (
            (lambda n=name: iter([texts[n]])) if name in texts else (lambda n=name: _blocks(sources[n]))
        )
        known = sums.get(name) or _sum(read)
        member = form.Member(name, known.size, known.crc, at)
        members.append(member)
        at = member.data + member.size
        if at > form.MAX_BYTES:
            raise CaskError(
                f"{name}: with it the bundle has more than {form.MAX_BYTES} bytes; compress the records first, "
                "with `cask-eval pack`"
            )
        f.write(member.local())
        for block in read():
            f.write(block)
        if f.tell() != at:
            raise StateError(f"{name}: changed while it was read; wait until nothing writes to the study")
    f.write(form.end(members, at))


def _free(path: Path, force: bool) -> None:
    if not os.path.lexists(path):
        return
    if not force:
        raise CaskError(f"{path}: is there already; name another file, or overwrite it with --force")
    if path.is_symlink() or not path.is_file():
        raise CaskError(f"{path}: is no plain file; name another one")
    with open(path, "rb") as f:
        if f.read(4) != b"PK\x03\x04":
            raise CaskError(f"{path}: is no bundle, and only a bundle is overwritten; name another file")


def _complete(e: Evidence) -> None:
    """Raises StateError or BundleError unless all that the study has left is here and can be read."""
    if e.torn or e.ledger_faults or e.load_faults:
        what = [*e.ledger_faults, *e.load_faults, "the ledger's last line is incomplete"][0]
        raise BundleError(f"{what}; mend it first, `cask-eval verify {e.study}` says what else is wrong")
    if e.register is None:
        raise StateError(f"study {e.study!r} is not registered; there is nothing to export")
    wanted = {"protocol_file": True, "dev_manifest": True, "heldout_manifest": True, "dev": e.dev_run,
              "heldout": e.close or e.sessions, "document": e.analysis}  # fmt: skip
    for name, has in wanted.items():
        if has and getattr(e, name) is None:
            raise StateError(f"{e.why(name)}; the ledger names it, so restore it before the study is exported")
    for era, file in e.superseded:
        if file is None and era.records:
            raise StateError(f"{era.records.path} is not there; the ledger names it, so restore it")
    for lock in (era.register[1].splits.get("dev") for era in e.state.eras):
        if lock and lock.digest not in e.splits:
            raise StateError(f"{lock.path} is not the split that the ledger names; restore it")


def _bundled(space: Workspace, sources: dict[str, Path]) -> None:
    """Raises CaskError unless every file is a plain one, with a name that every system takes."""
    for name, source in sources.items():
        if what := fault(name):
            raise CaskError(f"{name}: the name {what}, so it cannot be unpacked everywhere; a bundle cannot hold it")
        for place in (source, *source.parents):
            if place == space.root:
                break
            if place.is_symlink():
                raise CaskError(f"{name}: is a link, or lies behind one; put the file itself there")
        if not source.is_file():
            raise CaskError(f"{name}: is no plain file; a bundle holds nothing else")
    if pair := clash((INDEX, README, *sources)):
        raise CaskError(f"{pair[0]} and {pair[1]}: are one file on some systems; a bundle cannot hold both")
    if len(sources) + 2 > form.MAX_MEMBERS:
        raise CaskError(f"{len(sources)} files, and a bundle has at most {form.MAX_MEMBERS}; use another ledger")


@dataclass(frozen=True)
class _Sum:
    size: int
    crc: int
    sha256: str


def _sum(read: Callable[[], Iterator[bytes]]) -> _Sum:
    size, crc, sha = 0, 0, hashlib.sha256()
    for block in read():
        size, crc = size + len(block), zlib.crc32(block, crc)
        sha.update(block)
    return _Sum(size, crc, "sha256:" + sha.hexdigest())


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as f:
        while block := f.read(form.BLOCK):
            yield block
