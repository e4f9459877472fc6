"""Long records in segments, so that what is finished need not be parsed again.

``X.jsonl`` is the open segment, the only one that lines are added to. When it is full it is sealed: it moves to
``X.segments/00001.jsonl``, the next one to ``00002.jsonl`` and so on, and a new ``X.jsonl`` begins. All of them, one
behind the other, are the records in the order in which they were written. Small studies never fill one.

Beside a sealed segment lies its index, ``00001.index``: what resuming and committing need of each record (its key, the
length of its line, the hash that is committed to) and the digest of the segment's bytes. It is a convenience of whoever
writes: it is made again when it is not there, no verification reads it, and no bundle holds it.
"""

from __future__ import annotations

import base64
import heapq
import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from cask_eval import jsonl
from cask_eval.canonical import Merkle, digest_bytes, merkle_root_of
from cask_eval.errors import RecordError
from cask_eval.fields import Digest, Strict, first_fault
from cask_eval.ledger.events import RecordsCommit, SegmentCommit
from cask_eval.protocol.keys import Key
from cask_eval.records.keys import Keys, Names

# A full segment is parsed in a few seconds where its index was lost, and its lines fit into memory.
FULL_RECORDS = 20_000
FULL_BYTES = 256 << 20

_NAME = re.compile(r"(\d{5})\.(jsonl|jsonl\.gz|index)")
_LEAF = 32


def folder(path: Path) -> Path:
    """Where the sealed segments of the records at `path` lie."""
    return path.with_name(f"{path.stem}.segments")


def place(path: Path, number: int) -> Path:
    """Where sealed segment `number`, counted from 1, lies in its plain form."""
    return folder(path) / f"{number:05}.jsonl"


def sealed(path: Path) -> list[Path]:
    """The sealed segments of the records at `path`, by their plain names whether they are packed or not. Raises
    RecordError when one of them is gone, or when something else lies there."""
    found: dict[int, set[str]] = {}
    try:
        names = sorted(os.listdir(folder(path)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        if name.endswith((".new", ".lock")):  # what a crash left of a file that was about to be put in place
            continue
        parts = _NAME.fullmatch(name)
        if parts is None or not int(parts[1]):
            raise RecordError(f"{folder(path) / name}: is no segment's name; move it away")
        found.setdefault(int(parts[1]), set()).add(parts[2])
    for number in range(1, max(found, default=0) + 1):
        if not found.get(number, set()) - {"index"}:
            behind = "its index is there" if number in found else "a later one is there"
            raise RecordError(f"{place(path, number)}: this segment is gone, though {behind}; restore it")
    return [place(path, number) for number in sorted(found)]


class Index:
    """The records of one segment without their content: key and leaf hash of each, and where its line ends."""

    def __init__(self, keys: Keys | None = None, ends: Iterable[int] = (), leaves: bytes = b"") -> None:
        self.keys = Keys() if keys is None else keys
        self.ends = array("Q", ends)
        self._leaves = bytearray(leaves)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def size(self) -> int:
        """Bytes of all its lines."""
        return self.ends[-1] if self.ends else 0

    def add(self, key: Key, size: int, leaf: bytes) -> None:
        """One record more, whose line has `size` bytes with its line end."""
        self.keys.append(key)
        self.ends.append(self.size + size)
        self._leaves += leaf

    def span(self, row: int) -> tuple[int, int]:
        """Where the line of a record begins and ends."""
        return (self.ends[row - 1] if row else 0), self.ends[row]

    def rows(self, *wanted: str | None) -> list[int]:
        """The records of one cell, arm and configuration; None takes any."""
        fit = {
            number
            for number, place in enumerate(self.keys.names.places.values)
            if all(w in (None, part) for w, part in zip(wanted, place[1:]))
        }
        return np.flatnonzero(np.isin(np.asarray(self.keys.places), list(fit))).tolist() if fit else []

    def run(self) -> Iterator[tuple[Key, bytes]]:
        """(key, leaf hash) in the order of the keys."""
        for row in map(int, self.keys.order()):
            yield self.keys[row], bytes(self._leaves[_LEAF * row : _LEAF * (row + 1)])

    def commit(self) -> SegmentCommit:
        return SegmentCommit(count=len(self), merkle_root=merkle_root_of(leaf for _, leaf in self.run()))


def commit(indices: Iterable[Index], path: str, sealed: int = 0) -> RecordsCommit:
    """Count and Merkle root of all records in the order of their keys, whatever segments they lie in; the first
    `sealed` of the segments are named."""
    known, tree = list(indices), Merkle()
    for _, leaf in heapq.merge(*(index.run() for index in known), key=itemgetter(0)):
        tree.add(leaf)
    segments = [index.commit() for index in known[:sealed]]
    return RecordsCommit(path=path, count=sum(map(len, known)), merkle_root=tree.root, segments=segments)


class _Stored(Strict):
    """An index as it lies beside its segment. `places` and `problems` are what `rows` point into: four numbers a
    record, its place, its problem, its sample and the length of its line. `leaves` are all leaf hashes in base64."""

    index: Literal["cask-eval/segment/1"] = "cask-eval/segment/1"
    bytes: int
    sha256: Digest
    places: list[tuple[str, str, str, str]]
    problems: list[str]
    rows: list[int] = Field(repr=False)
    leaves: str = Field(repr=False)


def write(index: Index, sha256: str, path: Path) -> None:
    """Put the index of the segment at `path` beside it. Its first line is the digest of the second, so that damage is
    taken for what it is and not for damage of the segment."""
    names = Names()
    rows: list[int] = []
    for row, key in enumerate(index.keys):
        start, end = index.span(row)
        rows += (names.places.of(key[:4]), names.problems.of(key[4]), key[5], end - start)
    stored = _Stored(
        bytes=index.size, sha256=sha256, places=names.places.values, problems=names.problems.values, rows=rows,
        leaves=base64.b64encode(index._leaves).decode(),
    )  # fmt: skip
    body = json.dumps(stored.model_dump(), separators=(",", ":")).encode()
    jsonl.replace(beside(path), digest_bytes(body).encode() + b"\n" + body + b"\n")


def read(path: Path, names: Names | None = None) -> tuple[Index, str] | None:
    """The index of the segment at `path` and the digest of the segment's bytes; None when there is none. `names`: those
    that the segments of a file share. Raises RecordError when it is damaged."""
    where = beside(path)
    try:
        head, _, body = where.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    body = body.removesuffix(b"\n")
    try:
        if digest_bytes(body).encode() != head:
            raise ValueError("its digest is another")
        stored = _Stored.model_validate_json(body)
        leaves = base64.b64decode(stored.leaves, validate=True)
        if len(stored.rows) != 4 * (len(leaves) // _LEAF) or len(leaves) % _LEAF:
            raise ValueError("its columns are not of one length")
        keys = Keys(names=names)
        places = [keys.names.places.of(place) for place in stored.places]
        problems = [keys.names.problems.of(problem) for problem in stored.problems]
        of_place, of_problem, samples, sizes = (stored.rows[column::4] for column in range(4))
        if any(number < 0 for number in stored.rows):
            raise ValueError("a number is below zero")
        keys.extend((places[n] for n in of_place), (problems[n] for n in of_problem), samples)
        index = Index(keys, accumulate(sizes), leaves)
        if index.size != stored.bytes:
            raise ValueError("its lengths do not add up")
    except ValidationError as error:
        raise RecordError(f"{where}: {first_fault(error)}") from None
    except (ValueError, IndexError, OverflowError) as error:
        raise RecordError(f"{where}: is damaged: {error}") from None
    return index, stored.sha256


def beside(path: Path) -> Path:
    """Where the index of the segment at `path` lies."""
    return path.with_suffix(".index")
