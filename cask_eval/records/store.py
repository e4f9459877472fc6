"""The records of one phase: a file of one record per line that can be resumed after a crash."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from cask_eval import jsonl
from cask_eval.canonical import canonical, loads, merkle_root
from cask_eval.errors import DriftError, RecordError, StateError
from cask_eval.fields import first_fault
from cask_eval.ledger.events import RecordsCommit
from cask_eval.protocol.keys import Key
from cask_eval.records.model import Record

log = logging.getLogger(__name__)


class RecordStore:
    """The records file at `path`, plain or packed (`jsonl.packed`); a file that is not there has no records."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._keys: set[Key] | None = None
        self.torn = b""
        """What `open` set aside of an incomplete last line."""

    def read(self) -> Iterator[Record]:
        """The records in file order. Raises RecordError naming the line that is no record or repeats a key, and when
        the packed form is damaged or is there beside the plain one."""
        return self._records(jsonl.read_either(self.path))

    def _records(self, found: jsonl.Lines) -> Iterator[Record]:
        seen: dict[Key, int] = {}
        for number, line in enumerate(found.lines, 1):
            record = parse(line, f"{self.path}:{number}")
            if record.key in seen:
                raise RecordError(
                    f"{self.path}:{number}: {_show(record.key)} is already at line {seen[record.key]}; "
                    "a trial has one record"
                )
            seen[record.key] = number
            yield record
        if found.torn:
            raise RecordError(
                f"{self.path}:{len(found.lines) + 1}: the last line is incomplete; run the command that writes it "
                "again, it resumes there"
            )

    @contextmanager
    def open(self) -> Iterator[RecordStore]:
        """Take the file for writing, set aside what a crash left incomplete, and load the keys that are done.

        Raises StateError when another process has the file or when it is packed, RecordError when it is damaged.
        """
        with self._taken():
            try:
                if jsonl.packed(self.path).exists():
                    raise StateError(
                        f"{jsonl.packed(self.path)} is packed: its study is closed and takes no more records"
                    )
                self.torn = jsonl.repair(self.path)
                if self.torn:
                    log.warning("%s: incomplete last line (%d bytes) moved to .torn", self.path, len(self.torn))
                self._keys = {record.key for record in self.read()}
                yield self
            finally:
                self._keys = None

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
    def done(self) -> set[Key]:
        """The keys that have a record. Raises RecordError."""
        return set(self._keys) if self._keys is not None else {record.key for record in self.read()}

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
        if records:
            jsonl.append(self.path, b"".join(line_of(record) + b"\n" for record in records))
            self._keys |= new

    def commit(self, root: Path) -> RecordsCommit:
        """Count and Merkle root of the records; `root` is the workspace. Raises RecordError."""
        return commit(self.read(), self.path.resolve().relative_to(Path(root).resolve()).as_posix())

    def pack(self, committed: RecordsCommit) -> bool:
        """Replace the plain form by the packed one; False when that was done before. An earlier attempt that was cut
        off before the plain one was removed is finished.

        Raises DriftError when what is there is not what was `committed`, RecordError when it is damaged, StateError
        when another process has the file.
        """
        with self._taken():
            packed = jsonl.packed(self.path)
            plain = jsonl.read(self.path) if self.path.exists() else None
            before = jsonl.read_packed(self.path) if packed.exists() else None
            if plain is None and before is None:
                raise DriftError(f"{self.path} is not there; restore it before it is packed")
            for path, found, other in ((self.path, plain, before), (packed, before, plain)):
                if found is not None and commit(self._records(found), committed.path) != committed:
                    remedy = "remove it and pack again" if other else "restore it before it is packed"
                    raise DriftError(f"{path} is not what the ledger commits to; {remedy}")
            if plain is None:
                return False
            if before is None:
                jsonl.pack(self.path)
            elif before.lines != plain.lines:
                raise DriftError(f"{self.path} and {packed.name} differ in their measures; keep the one you trust")
            else:
                jsonl.remove(self.path)
            return True


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


def commit(records: Iterator[Record] | list[Record], path: str) -> RecordsCommit:
    """Count and Merkle root over `evidence_of` the records in the order of their keys: the order of the run, which
    differs after a crash or on several machines, does not matter."""
    leaves = sorted((record.key, evidence_of(record)) for record in records)
    return RecordsCommit(path=path, count=len(leaves), merkle_root=merkle_root(line for _, line in leaves))


def _show(key: Key) -> str:
    return f"the trial {'/'.join(str(part) for part in key if part != '')}"
