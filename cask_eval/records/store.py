"""The records of one phase: one record per line, in a file, or in several where they are many, that can be resumed
after a crash."""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from cask_eval import jsonl
from cask_eval.canonical import canonical, digest_file, leaf_hash, loads
from cask_eval.errors import DriftError, RecordError, StateError
from cask_eval.fields import first_fault
from cask_eval.ledger.events import RecordsCommit
from cask_eval.protocol.keys import Key
from cask_eval.records import segments
from cask_eval.records.keys import Keys, KeySet, Names
from cask_eval.records.model import Record
from cask_eval.records.segments import Index

log = logging.getLogger(__name__)


class RecordStore:
    """The records at `path`, plain or packed (`jsonl.packed`), with the sealed segments in front of them
    (`cask_eval.records.segments`); a file that is not there has no records."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._keys: KeySet | None = None
        self._indices: list[Index] = []
        self.torn = b""
        """What `open` set aside of an incomplete last line."""

    @property
    def files(self) -> list[Path]:
        """The segments in the order of their records, by their plain names; the open one is the last. Raises
        RecordError when one is gone."""
        return [*segments.sealed(self.path), self.path]

    def read(self, cell: str | None = None, arm: str | None = None, config: str | None = None) -> Iterator[Record]:
        """The records in the order in which they were written; of one cell, arm or configuration, where they are named.
        Inside `open` those are found without reading the others.

        Raises RecordError naming the line that is no record or repeats a key, and when a packed form is damaged or is
        there beside the plain one."""
        wanted = cell, arm, config
        if self._keys is not None and wanted != (None, None, None):
            yield from self._found(*wanted)
            return
        seen, files = KeySet(), self.files
        for number, path in enumerate(files):
            for record, _ in _records(path, jsonl.Stream(path), seen, files[:number]):
                if all(w in (None, part) for w, part in zip(wanted, record.key[1:4])):
                    yield record

    def failed(self) -> Iterator[Record]:
        """The records with a failure; those that say that they have none are not parsed. Raises RecordError on a line
        that is no record."""
        for path in self.files:
            for number, line in enumerate(jsonl.Stream(path), 1):
                # No text can hold this: in a JSON text every quotation mark has a backslash before it.
                if b'"failure":null' not in line and (record := parse(line, f"{path}:{number}")).failure:
                    yield record

    def _found(self, *wanted: str | None) -> Iterator[Record]:
        for path, index in zip(self.files, self._indices, strict=True):
            rows = index.rows(*wanted)
            if not rows:
                continue
            with open(path, "rb") as f:
                for row in rows:
                    start, end = index.span(row)
                    f.seek(start)
                    yield parse(f.read(end - start), f"{path}:{row + 1}")

    @contextmanager
    def open(self) -> Iterator[RecordStore]:
        """Take the records for writing, set aside what a crash left incomplete, and load the keys that are done. Sealed
        segments are not parsed again: their bytes are compared with the digest in their index.

        Raises StateError when another process has them or when they are packed, RecordError when they are damaged.
        """
        with self._taken():
            try:
                for path in self.files:
                    if (packed := jsonl.packed(path)).exists():
                        raise StateError(f"{packed} is packed: its study is closed and takes no more records")
                self.torn = jsonl.repair(self.path)
                if self.torn:
                    log.warning("%s: incomplete last line (%d bytes) moved to .torn", self.path, len(self.torn))
                self._keys = self._load()
                yield self
            finally:
                self._keys, self._indices = None, []

    def _load(self) -> KeySet:
        """The indices of all segments, and the keys in them."""
        *closed, last = self.files
        names = Names()
        self._indices = [*(_sealed(path, names) for path in closed), _index(last, names)]
        keys = KeySet()
        for path, index in zip(self.files, self._indices, strict=True):
            for row, key in enumerate(index.keys, 1):
                if not keys.add(key):
                    raise RecordError(
                        f"{path}:{row}: {_show(key)} is in an earlier segment too; a trial has one record"
                    )
        return keys

    @contextmanager
    def _taken(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self.path) + ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StateError(f"{self.path}: another process is writing these records; wait for it to end") from None
        try:
            yield
        finally:
            lock.release()

    @property
    def done(self) -> Set[Key]:
        """The keys that have a record; inside `open` those that are appended later too. Raises RecordError."""
        return self._keys if self._keys is not None else KeySet(record.key for record in self.read())

    def append(self, records: list[Record]) -> None:
        """Add records in one write; they are on disk on return. Only inside `open`.

        Raises RecordError, with nothing written, when a key has a record already or appears twice.
        """
        if self._keys is None:
            raise StateError(f"{self.path}: append needs the file to be taken with `open` first")
        new: set[Key] = set()
        for record in records:
            if record.key in self._keys or record.key in new:
                raise RecordError(f"{self.path}: {_show(record.key)} has a record already; a trial has one record")
            new.add(record.key)
        if not records:
            return
        lines, leaves = [], []
        for record in records:
            line, evidence = canonical_lines(record)
            loads(line)  # refuses what has no canonical form
            lines.append(line + b"\n")
            leaves.append(leaf_hash(evidence))
        if len(self._indices[-1]) >= segments.FULL_RECORDS or self._indices[-1].size >= segments.FULL_BYTES:
            self._seal()
        jsonl.append(self.path, b"".join(lines))
        index = self._indices[-1]
        for record, line, leaf in zip(records, lines, leaves, strict=True):
            index.add(record.key, len(line), leaf)
            self._keys.add(record.key)

    def _seal(self) -> None:
        """Seal the open segment. It is moved in one step, and its index only says again what it holds, so that a crash
        at any point leaves what `open` goes on from."""
        path, index = segments.place(self.path, len(self._indices)), self._indices[-1]
        if not path.parent.exists():
            path.parent.mkdir()
            jsonl.sync_folder(path.parent.parent)
        if self.path.stat().st_size != index.size:
            raise RecordError(f"{self.path}: was changed while it was written to; run the command again")
        jsonl.move(self.path, path)
        self._indices.append(Index(Keys(names=index.keys.names)))
        segments.write(index, digest_file(path), path)

    def commit(self, root: Path) -> RecordsCommit:
        """Count and Merkle root of the records; `root` is the workspace. Raises RecordError."""
        path = self.path.resolve().relative_to(Path(root).resolve()).as_posix()
        if self._keys is not None:
            return segments.commit(self._indices, path, len(self._indices) - 1)
        seen, files, names = KeySet(), self.files, Names()
        indices = [
            _indexed(_records(file, jsonl.Stream(file), seen, files[:number]), names)
            for number, file in enumerate(files)
        ]
        return segments.commit(indices, path, len(indices) - 1)

    def pack(self, committed: RecordsCommit) -> bool:
        """Replace the plain form by the packed one, segment by segment; False when that was done before. An earlier
        attempt that was cut off before the last plain one was removed is finished.

        Raises DriftError when what is there is not what was `committed`, RecordError when it is damaged, StateError
        when another process has the records.
        """
        with self._taken():
            forms = [_Forms(path) for path in self.files]
            self._as_committed(forms, committed)
            for form in forms:
                if form.both and form.read(form.packed).lines != form.read(form.plain).lines:
                    packed = form.packed.name
                    raise DriftError(f"{form.plain} and {packed} differ in their measures; keep the one you trust")
            # Before the first is packed: an index says that its segment can be read at once, which then is over.
            for form in forms[:-1]:
                if (index := segments.beside(form.plain)).exists():
                    jsonl.remove(index)
            for form in forms:
                if form.both:
                    jsonl.remove(form.plain)
                elif form.there == [form.plain]:
                    jsonl.pack(form.plain)
            return any(form.plain in form.there for form in forms)

    def _as_committed(self, forms: list[_Forms], committed: RecordsCommit) -> None:
        """Raises DriftError unless every form of every segment is what is committed to."""
        for form in forms:
            if not form.there:
                raise DriftError(f"{form.plain} is not there; restore it before it is packed")
        chosen = [form.index(form.there[0]) for form in forms]
        found = segments.commit(chosen, committed.path, len(forms) - 1)
        if found != committed:
            same = [a == b for a, b in zip(found.segments, committed.segments)]
            at = same.index(False) if False in same else len(forms) - 1
            if len(found.segments) != len(committed.segments):
                raise DriftError(
                    f"{segments.folder(self.path)} holds {len(found.segments)} segments, the ledger commits to "
                    f"{len(committed.segments)}; restore them before they are packed"
                )
            raise DriftError(forms[at].not_committed(forms[at].there[0]))
        for form, index in zip(forms, chosen, strict=True):
            if form.both and form.index(form.packed).commit() != index.commit():
                raise DriftError(form.not_committed(form.packed))


class _Forms:
    """The forms of one segment that are there: plain, packed, or, after a crash, both."""

    def __init__(self, path: Path):
        self.plain, self.packed = path, jsonl.packed(path)
        self.there = [form for form in (self.plain, self.packed) if form.exists()]
        self.both = len(self.there) > 1

    def read(self, form: Path) -> jsonl.Lines:
        return jsonl.read(form) if form == self.plain else jsonl.read_packed(self.plain)

    def index(self, form: Path) -> Index:
        return _indexed(_records(self.plain, jsonl.Stream(self.plain, form), KeySet()))

    def not_committed(self, form: Path) -> str:
        remedy = "remove it and pack again" if self.both else "restore it before it is packed"
        return f"{form} is not what the ledger commits to; {remedy}"


def _records(
    path: Path, lines: jsonl.Stream, seen: KeySet, before: Sequence[Path] = ()
) -> Iterator[tuple[Record, int]]:
    """The records in a file, each with the length of its line; `seen` are the keys that came before, in the files
    `before` and in this one. Raises RecordError."""
    number = 0
    for number, line in enumerate(lines, 1):
        record = parse(line, f"{path}:{number}")
        if not seen.add(record.key):
            at = f"{path}:{number}"
            raise RecordError(f"{at}: {_show(record.key)} is already at {_earlier(record.key, path, lines, before)}; "
                              "a trial has one record")  # fmt: skip
        yield record, len(line) + 1
    if lines.torn:
        remedy = "run the command that writes it again, it resumes there"
        if path.parent.suffix == ".segments":
            remedy = "it was complete once; restore it"
        raise RecordError(f"{path}:{number + 1}: the last line is incomplete; {remedy}")


def _earlier(key: Key, path: Path, own: jsonl.Stream, before: Sequence[Path]) -> str:
    """Where the first record of a key stands that comes twice."""
    for file in (*before, path):
        for number, line in enumerate(own if file == path else jsonl.Stream(file), 1):
            if parse(line, f"{file}:{number}").key == key:
                return f"line {number}" if file == path else f"{file}:{number}"
    raise RecordError(f"{path}: was changed while it was read; read it again")


def _indexed(records: Iterable[tuple[Record, int]], names: Names | None = None) -> Index:
    index = Index(Keys(names=names))
    for record, size in records:
        index.add(record.key, size, leaf_hash(canonical_lines(record)[1]))
    return index


def _index(path: Path, names: Names) -> Index:
    """The index of a plain file, parsed. Raises RecordError."""
    found = _indexed(_records(path, jsonl.Stream(path, path), KeySet()), names)
    if path.exists() and found.size != path.stat().st_size:
        # Line ends of another system are counted as they are.
        found.ends = array("Q", jsonl.ends(path))
    return found


def _sealed(path: Path, names: Names) -> Index:
    """The index of a sealed segment, made again where it was lost. Raises RecordError when the segment is not the one
    that was sealed."""
    try:
        known = segments.read(path, names)
    except RecordError as error:
        log.warning("%s; it is made again", error)
        known = None
    if known is None:
        index = _index(path, names)
        segments.write(index, digest_file(path), path)
        return index
    index, digest = known
    if (size := path.stat().st_size) != index.size or digest_file(path) != digest:
        raise RecordError(
            f"{path}: is not the segment that was sealed ({size} bytes, sealed were {index.size}); restore it"
        )
    return index


def parse(line: bytes, where: str) -> Record:
    """One line as a record. Raises RecordError, which starts with `where`."""
    try:
        return Record.model_validate(loads(line))
    except ValidationError as error:
        raise RecordError(f"{where}: {first_fault(error, 'line', value=True)}") from None
    except ValueError as error:
        raise RecordError(f"{where}: not strict JSON: {error}") from None


def line_of(record: Record) -> bytes:
    """The record as it stands in a file, without the line end."""
    return canonical(record.model_dump(mode="json"))


def canonical_lines(record: Record) -> tuple[bytes, bytes]:
    """`line_of` and `evidence_of`, many times faster, of a record whose line `canonical.loads` lets in: without floats,
    large integers and names beyond ASCII, RFC 8785 is sorted, compact JSON."""
    value = record.model_dump(mode="json")
    if not all(name.isascii() for name in record.measures):
        return line_of(record), evidence_of(record)
    line = _compact(value)
    # No text can hold this: in a JSON text every quotation mark has a backslash before it.
    return line, line.replace(b'"measures":' + _compact(value["measures"]) + b",", b"", 1)


def _compact(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def evidence_of(record: Record) -> bytes:
    """The part of the record that is committed to: all but the measures, whose last digits depend on the batch."""
    return canonical(record.model_dump(mode="json", exclude={"measures"}))


def same_evidence(again: Record, stored: Record) -> bool:
    """Whether a trial that was run again left what is stored. What a record of an earlier version does not say is not
    compared; the fidelity of a replay has to be near."""
    if stored.stages is None:
        again = again.model_copy(update={"stages": None})
    if again.fidelity and stored.fidelity and again.fidelity.near(stored.fidelity):
        again = again.model_copy(update={"fidelity": stored.fidelity})
    return evidence_of(again) == evidence_of(stored)


def commit(records: Iterable[Record], path: str) -> RecordsCommit:
    """Count and Merkle root over `evidence_of` the records in the order of their keys: the order of the run, which
    differs after a crash or on several machines, does not matter."""
    index = Index()
    for record in records:
        index.add(record.key, 0, leaf_hash(evidence_of(record)))
    return segments.commit([index], path)


def _show(key: Key) -> str:
    return f"the trial {'/'.join(str(part) for part in key if part != '')}"
