"""The records of one phase as a verifier reads them: once strictly, keeping of each only what is small.

Files come from people who may want a wrong result to pass, so nothing is read beyond what a file as committed has, and
faults are kept as text. Most checks ask little of a record, and that is kept of all (`Row`). The records themselves are
kept while there are few; of many, whoever needs them gets them parsed again, one after the other.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cask_eval import jsonl
from cask_eval.canonical import leaf_hash, merkle_root_of
from cask_eval.errors import CaskError, RecordError
from cask_eval.ledger.events import SegmentCommit
from cask_eval.protocol.keys import MAX_TRIALS, Key
from cask_eval.records.keys import Keys, Numbers
from cask_eval.records.model import Record, ResidencyRecord
from cask_eval.records.store import canonical_lines, parse

MAX_LINE = 64 << 20
MAX_FILE = 16 << 30
# What the files of a phase may hold together: so much for each record that is committed to, or one file's bytes.
MAX_RECORD = 256 << 10
MAX_FAULTS = 10_000
# Records beyond those that the ledger commits to which are read all the same, to say how many they are.
SPARE = 10_000
# Records whose lines have more bytes than this are parsed again whenever they are asked for. As objects they are
# several times as large.
KEPT = 64 << 20

# Bytes of a seed, of what stands for an output, and of a leaf hash.
_SHORT, _LEAF = 16, 32
_NONE = bytes(_SHORT)


class About(NamedTuple):
    """What many records of a study have alike. `failed`: whether the trial did."""

    study: str
    registration: str
    grader: str
    failed: bool


class Row(NamedTuple):
    """What is kept of every record. `leaf` stands for all that is committed to (`canonical.leaf_hash` of
    `records.store.evidence_of`), `output` for its token ids; b"" where there are none."""

    key: Key
    about: About
    problem_digest: str
    seed: str
    output: bytes
    leaf: bytes

    @property
    def where(self) -> str:
        """Phase, cell, arm, problem and sample."""
        phase, cell, arm, _, problem, sample = self.key
        return f"{phase}/{cell}/{arm}/{problem}/{sample}"

    @property
    def drawn(self) -> bytes:
        """What stands for seed and output."""
        return bytes.fromhex(self.seed) + self.output


class Rows(Sequence[Row]):
    """The rows of a file by columns: 88 bytes each, beside the texts that they share. A row is made when it is asked
    for."""

    def __init__(self) -> None:
        self.keys = Keys()
        self._abouts, self._digests = _Column(), _Column()
        self._seeds, self._outputs, self._leaves = bytearray(), bytearray(), bytearray()

    def append(self, r: Record, leaf: bytes) -> None:
        self.keys.append(r.key)
        self._abouts.append(About(r.study, r.registration, r.grade.grader, r.status == "failed"))
        self._digests.append(r.problem_digest)
        self._seeds += bytes.fromhex(r.seed)
        said = repr(r.output_ids).encode()
        self._outputs += hashlib.blake2b(said, digest_size=_SHORT).digest() if r.output_ids else _NONE
        self._leaves += leaf

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        at = range(len(self))[index]
        output = bytes(self._outputs[_SHORT * at : _SHORT * (at + 1)])
        return Row(self.keys[at], self._abouts[at], self._digests[at],
                   self._seeds[_SHORT * at : _SHORT * (at + 1)].hex(), b"" if output == _NONE else output,
                   self._leaf(at))  # fmt: skip

    def _leaf(self, at: int) -> bytes:
        return bytes(self._leaves[_LEAF * at : _LEAF * (at + 1)])

    @property
    def abouts(self) -> Mapping[About, int]:
        """What the rows are about, and how many of them, in the order in which it first comes."""
        return self._abouts.counts()

    def in_order(self) -> Iterator[Key]:
        """The keys, sorted."""
        return (self.keys[at] for at in map(int, self.keys.order()))

    def roots(self, counts: Iterable[int], first: int = 0) -> dict[int, str]:
        """Count → root of the rows from the first on that stand in front of it, as in `records.segments.commit`. The
        time is in proportion to the sum of the counts: each is a tree of its own."""
        order = self.keys.order(first)
        return {count: merkle_root_of(self._leaf(int(at)) for at in order[order < count]) for count in set(counts)}


class _Column:
    """Values of which many are alike, four bytes each."""

    def __init__(self) -> None:
        self._codes, self._numbers = array("I"), Numbers()

    def append(self, value: Hashable) -> None:
        self._codes.append(self._numbers.of(value))

    def __getitem__(self, at: int) -> Any:
        return self._numbers.values[self._codes[at]]

    def counts(self) -> dict[Any, int]:
        values = self._numbers.values
        return dict(zip(values, np.bincount(np.asarray(self._codes), minlength=len(values)).tolist(), strict=True))


class Segment(NamedTuple):
    """One sealed segment as it was found."""

    path: str
    commit: SegmentCommit | None
    """None where it holds no record."""


@dataclass(frozen=True)
class RecordFile:
    """A phase's records. `rows` are those of `records`, in their order; `faults` are lines that are no records or not
    in canonical form; `torn` says that the last line is incomplete. `segments` are the sealed ones, and what they
    hold."""

    path: str
    rows: Rows
    records: Sequence[Record]
    faults: tuple[str, ...]
    torn: bool
    segments: tuple[Segment, ...] = ()


class Part(NamedTuple):
    """One file of a phase's records: the path that is spoken of, where it lies (plain or packed), and how many records
    the ledger commits to there."""

    path: str
    file: Path
    count: int


def load(path: str, parts: Sequence[Part], root: Path, count: int) -> RecordFile:
    """What is in `parts`, of which the last is the open segment; `root` is the workspace, `count` how many records the
    ledger commits to in all. Raises RecordError where a file is not what a file as committed could be, or all together
    are not."""
    rows = Rows()
    # Packed, they are at least as many bytes.
    records: list[Record] | None = [] if sum(part.file.stat().st_size for part in parts) <= KEPT else None
    faults: list[str] = []
    found: list[Segment] = []
    residencies: dict[tuple, ResidencyRecord] = {}
    sources: list[_Source] = []
    size, room = 0, _Room(path, count)
    for part in parts:
        lines, first = _Lines(part, root, room), len(rows)
        source = _Source(part, root)
        for number, line in enumerate(lines, 1):
            source.digest.update(line + b"\n")
            source.read, size = number, size + len(line)
            try:
                record = parse(line, f"{part.path}:{number}")
                canonical, leaf = canonical_lines(record)
                rows.append(record, leaf_hash(leaf))
                if records is not None:
                    records.append(_sharing(record, residencies))
                    if size > KEPT:
                        records = None
                        residencies.clear()
                if canonical != line:
                    faults.append(f"{part.path}:{number}: is not in canonical form; the line was rewritten")
            except (CaskError, ValueError) as error:
                source.faulty.add(number)
                faults.append(str(error))
            if len(faults) >= MAX_FAULTS:
                faults.append(f"{path}: after {MAX_FAULTS} faulty lines the rest was not read")
                break
        sources.append(source)
        if part is not parts[-1]:
            if lines.torn:
                faults.append(f"{part.path}: the last line is incomplete")
            found.append(Segment(part.path, _commit(rows, first)))
        if len(faults) > MAX_FAULTS:
            break
    kept = tuple(records) if records is not None else Again(sources, len(rows))
    return RecordFile(path, rows, kept, tuple(faults), lines.torn, tuple(found))


def _commit(rows: Rows, first: int) -> SegmentCommit | None:
    """The rows from the first on."""
    count = len(rows)
    return SegmentCommit(count=count - first, merkle_root=rows.roots([count], first)[count]) if count > first else None


class Again(Sequence):
    """Records that are not kept, but parsed again whenever they are gone through. They are those of the first time,
    when they were read strictly, and RecordError is raised where the files have changed since."""

    def __init__(self, sources: Sequence[_Source], count: int):
        self._sources, self._count = sources, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        for source in self._sources:
            yield from source

    def __getitem__(self, index):
        raise TypeError("there are more records than are kept; go through them instead")


class _Source:
    """The records of one part. `faulty` are the numbers of lines that are none, `read` is how many were looked at, and
    `digest` of what."""

    def __init__(self, part: Part, root: Path):
        self.part, self.root, self.read = part, root, 0
        self.faulty: set[int] = set()
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Record]:
        changed = RecordError(f"{self.part.path}: was changed while it was verified; verify again")
        digest, number = hashlib.sha256(), 0
        for number, line in enumerate(_Lines(self.part, self.root), 1):
            digest.update(line + b"\n")
            if number not in self.faulty:
                try:
                    record = Record.model_validate_json(line)
                except ValueError:
                    raise changed from None
                yield record
            if number == self.read:
                break
        if (number, digest.digest()) != (self.read, self.digest.digest()):
            raise changed


def _sharing(record: Record, known: dict[tuple, ResidencyRecord]) -> Record:
    """The record, with the residency of an earlier one where it is equal: most of a record's memory is its events, and
    trials of the same lengths have the same."""
    own = record.residency
    if own is None:
        return record
    first = known.setdefault((own.prompt_tokens, own.steps, own.payload_bytes, len(own.events)), own)
    return record.model_copy(update={"residency": first}) if first is not own and first == own else record


class _Room:
    """What may still be read of all files of a phase together. The bound of one file does not bound them: there may be
    any number of segments, and a ledger may say more of each than of all."""

    def __init__(self, path: str, count: int):
        self.path, self.count = path, count
        self.most = max(MAX_FILE, min(count, MAX_TRIALS) * MAX_RECORD)
        self.bytes, self.records = self.most, count + SPARE

    def take(self, size: int, records: int) -> None:
        """Raises RecordError when there is no room for so much."""
        self.bytes -= size
        self.records -= records
        if self.bytes < 0:
            raise RecordError(f"{self.path}: with its segments it holds more than {self.most} bytes")
        if self.records < 0:
            raise RecordError(
                f"{self.path}: with its segments it holds more than the {self.count} records that were committed to"
            )


class _Lines:
    """The complete lines of a records file, one after the other: it may be large, and a packed one of a few bytes may
    unpack to anything. Nothing is read beyond the first thing that a file as committed does not have. Raises
    RecordError there. `torn`: whether an incomplete line ends it, known at the end."""

    def __init__(self, part: Part, root: Path, room: _Room | None = None):
        self.path, self.where, self.count = part.file, part.file.relative_to(root).as_posix(), part.count
        self.room = room
        self.packed = part.file.suffix == ".gz"
        self.torn = False

    def __iter__(self) -> Iterator[bytes]:
        size, given, rest = 0, 0, b""
        holds, spare = ("unpacks to", 0) if self.packed else ("holds", SPARE)
        for piece in jsonl.pieces(self.path):
            size += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            if size > MAX_FILE:
                raise RecordError(f"{self.where}: {holds} more than {MAX_FILE} bytes")
            for line in (*lines, rest):
                if len(line) > MAX_LINE:
                    raise RecordError(f"{self.where}:{given + 1}: {holds} a line of more than {MAX_LINE} bytes")
            given += len(lines)
            if given > self.count + spare:
                raise RecordError(f"{self.where}: {holds} more than the {self.count} records that were committed to")
            if self.room:
                self.room.take(len(piece), len(lines))
            yield from (line.removesuffix(b"\r") for line in lines)
        last = jsonl.split(rest)
        if last.torn and self.packed:
            raise RecordError(f"{self.where}:{given + 1}: the last line is incomplete")
        self.torn = bool(last.torn)
        yield from last.lines
