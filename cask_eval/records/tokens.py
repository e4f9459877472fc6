"""Numbers per token of replays, in safetensors files beside the records: one file per cell and arm.

Three tensors a trial, named by its configuration, problem and sample: `nll` F32, `rank` I32 and `kl` F32, each [K, T]
as in `cask_eval.fidelity.Tokens`. Which tokens were predicted from a compressed cache follows from the frozen schedule
and is not stored. A record commits to its own arrays, whatever file they lie in. The format is read and written here
because a reviewer has no safetensors; numbers are little-endian, as it wants them.

A safetensors file begins with a list of all that is in it, so that nothing can be added but by writing it anew. While
replays run their numbers are appended to a journal beside it, which goes into the file when they are done: pieces, each
a safetensors file with its length and digest in front. A piece that a crash left incomplete is passed over; its trials
have no records yet and are run again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cask_eval import jsonl
from cask_eval.canonical import canonical, digest_bytes
from cask_eval.errors import RecordError
from cask_eval.fidelity import Tokens

# (configuration, problem, sample)
Trial = tuple[str, str, int]

FIELDS = {"nll": ("F32", "<f4"), "rank": ("I32", "<i4"), "kl": ("F32", "<f4")}
MAX_HEADER = 64 << 20

# In front of each piece of a journal: its length and its SHA-256.
_HEAD = 8 + 32


def path_of(records: str, cell: str, arm: str) -> str:
    """Where the arrays of an arm lie, given the stored path of its phase's records: ``dev.tokens/`` beside
    ``dev.jsonl``."""
    return f"{records.removesuffix('.jsonl')}.tokens/{cell}/{arm}.safetensors"


def digest_of(tokens: Tokens) -> str:
    """What a record commits to: shape and bytes of each array. Raises RecordError without `kl`."""
    arrays = _arrays(tokens)
    head = canonical([list(tokens.nll.shape), list(FIELDS)])
    return digest_bytes(head + b"".join(arrays[name].tobytes() for name in FIELDS))


class TokenFile:
    """The arrays of one arm at `path`; a file that is not there has none. Everything is bounded by the file's size.

    Raises RecordError when it is damaged."""

    def __init__(self, path: Path):
        self.path, self.journal = path, journal_of(path)
        self._index: dict[str, _Tensor] = {}
        self._whole = 0
        """Bytes of the journal that are whole pieces."""
        if path.exists():
            with open(path, "rb") as f:
                self._index = _tensors(f, path, 0, path.stat().st_size)
        if self.journal.exists():
            self._read_journal()

    def _read_journal(self) -> int:
        """Take in what the journal has beyond what is known, and return its size."""
        size = self.journal.stat().st_size
        with open(self.journal, "rb") as f:
            f.seek(self._whole)
            while len(head := f.read(_HEAD)) == _HEAD:
                start, length = f.tell(), int.from_bytes(head[:8], "little")
                if length > size - start or hashlib.sha256(f.read(length)).digest() != head[8:]:
                    break
                self._index |= _tensors(f, self.journal, start, length)
                self._whole = start + length
                f.seek(self._whole)
        return size

    @property
    def trials(self) -> set[Trial]:
        """The trials that have arrays. Raises RecordError on a tensor of another name."""
        found = set()
        for name in self._index:
            try:
                config, problem, sample, field = json.loads(name)
                if name != _name((config, problem, sample), field) or field not in FIELDS:
                    raise ValueError
                found.add((config, problem, sample))
            except (ValueError, TypeError):
                raise RecordError(f"{self.path.name}: tensor {name!r:.100} belongs to no trial") from None
        return found

    def shape(self, trial: Trial) -> list[int] | None:
        """[K, T] of one trial, before anything of it is read; None where there are no numbers."""
        found = self._index.get(_name(trial, "nll"))
        return found and found.shape

    def read(self, trial: Trial, compressed_from: list[int] | None = None) -> Tokens | None:
        """The numbers of one trial, None where there are none. compressed_from: by chain, the index of the first token
        that was predicted from a compressed cache; none was where it is left out. Raises RecordError when they are not
        such numbers."""
        shape = self.shape(trial)
        if shape is None:
            return None
        arrays = {}
        for field, (kind, dtype) in FIELDS.items():
            found = self._index.get(_name(trial, field))
            if found is None or found.dtype != kind or len(shape) != 2 or found.shape != shape:
                raise RecordError(f"{self.path.name}: {field} of {trial} is not {kind} [K, T]")
            arrays[field] = np.frombuffer(found.read(), dtype).reshape(shape)
        chains, length = arrays["nll"].shape
        first = [length] * chains if compressed_from is None else compressed_from
        if chains != len(first):
            raise RecordError(f"{self.path.name}: {trial} has {chains} chains, expected {len(first)}")
        mask = np.arange(length)[None] >= np.array(first)[:, None]
        return Tokens(arrays["nll"], arrays["rank"], arrays["kl"], mask)

    def append(self, found: Mapping[Trial, Tokens]) -> None:
        """Add trials to the journal: they are on disk on return, and what is there already is not written again. A
        trial that is there already, whose record a crash prevented, is replaced."""
        data = _safetensors((name, FIELDS[field][0], array.shape, array.tobytes())
                            for name, field, array in _named(found))  # fmt: skip
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        if self.journal.exists() and self._read_journal() > self._whole:
            jsonl.cut(self.journal, self._whole)
        jsonl.append(self.journal, len(data).to_bytes(8, "little") + hashlib.sha256(data).digest() + data)
        self._read_journal()

    def settle(self) -> None:
        """Let what the journal holds go into the file."""
        if self.journal.exists():
            self.add({})

    def add(self, found: Mapping[Trial, Tokens]) -> None:
        """Write the file again with more trials, and with those in the journal, in one move: after a crash it holds all
        or none of them. A trial that is there already is replaced."""
        new = {name: (FIELDS[field][0], array.shape, array.tobytes()) for name, field, array in _named(found)}
        both = {**{name: (t.dtype, t.shape, t.read()) for name, t in self._index.items() if name not in new}, **new}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.replace(self.path, _safetensors((name, *both[name]) for name in sorted(both)))
        if self.journal.exists():
            jsonl.remove(self.journal)
        self._whole = 0
        with open(self.path, "rb") as f:
            self._index = _tensors(f, self.path, 0, self.path.stat().st_size)


def journal_of(path: Path) -> Path:
    """Where the journal of the arrays at `path` lies while replays run."""
    return path.with_name(path.name + ".journal")


class _Tensor(NamedTuple):
    """Where the bytes of one tensor lie, and what they are."""

    path: Path
    start: int
    size: int
    dtype: str
    shape: list[int]

    def read(self) -> bytes:
        with open(self.path, "rb") as f:
            f.seek(self.start)
            return f.read(self.size)


def _tensors(f: BinaryIO, path: Path, at: int, size: int) -> dict[str, _Tensor]:
    """The tensors of the safetensors file of so many bytes that lies at a place in `f`. Raises RecordError."""
    f.seek(at)
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise RecordError(f"{path.name}: is no safetensors file; restore it")
    try:
        index = json.loads(f.read(length))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path.name}: its header is not JSON: {error}") from None
    if not isinstance(index, dict):
        raise RecordError(f"{path.name}: its header holds no named tensors")
    out = {}
    for name, entry in index.items():
        if not _sound(entry, size - 8 - length):
            raise RecordError(f"{path.name}: tensor {name!r:.100} is not in its place")
        begin, end = entry["data_offsets"]
        out[name] = _Tensor(path, at + 8 + length + begin, end - begin, entry["dtype"], entry["shape"])
    return out


def _safetensors(tensors: Iterable[tuple[str, str, Sequence[int], bytes]]) -> bytes:
    """A file of (name, type, shape, bytes)."""
    header, pieces, at = {}, [], 0
    for name, kind, shape, data in tensors:
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        pieces.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(pieces)


def _named(found: Mapping[Trial, Tokens]) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, field, array) of every tensor."""
    for trial, tokens in found.items():
        for field, array in _arrays(tokens).items():
            yield _name(trial, field), field, array


def _name(trial: Trial, field: str) -> str:
    return json.dumps([*trial, field], separators=(",", ":"), ensure_ascii=False)


def _arrays(tokens: Tokens) -> dict[str, np.ndarray]:
    if tokens.kl is None:
        raise RecordError("kl: is missing; replay with the logits of the full cache")
    return {name: np.ascontiguousarray(getattr(tokens, name), dtype) for name, (_, dtype) in FIELDS.items()}


def _sound(entry: object, room: int) -> bool:
    """Whether a header's entry is one tensor of 32-bit numbers inside the file."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    shape, offsets = entry["shape"], entry["data_offsets"]
    whole = all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in (shape, offsets))
    if not whole or len(offsets) != 2 or len(shape) > 4:
        return False
    begin, end = offsets
    return begin <= end <= room and 4 * math.prod(shape) == end - begin
