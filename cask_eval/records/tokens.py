"""Numbers per token of replays, in safetensors files beside the records: one file per cell and arm.

Three tensors a trial, named by its configuration, problem and sample: `nll` F32, `rank` I32 and `kl` F32, each [K, T]
as in `cask_eval.fidelity.Tokens`. Which tokens were predicted from a compressed cache follows from the frozen schedule
and is not stored. A record commits to its own arrays, whatever file they lie in. The format is read and written here
because a reviewer has no safetensors; numbers are little-endian, as it wants them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cask_eval import jsonl
from cask_eval.canonical import canonical, digest_bytes
from cask_eval.errors import RecordError
from cask_eval.fidelity import Tokens

# (configuration, problem, sample)
Trial = tuple[str, str, int]

FIELDS = {"nll": ("F32", "<f4"), "rank": ("I32", "<i4"), "kl": ("F32", "<f4")}
MAX_HEADER = 64 << 20


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
        self.path = path
        self._index: dict[str, dict] = {}
        self._start = 0
        if not path.exists():
            return
        size = path.stat().st_size
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise RecordError(f"{path.name}: is no safetensors file; restore it")
            try:
                self._index = json.loads(f.read(length))
            except (ValueError, RecursionError) as error:
                raise RecordError(f"{path.name}: its header is not JSON: {error}") from None
        self._start = 8 + length
        if not isinstance(self._index, dict):
            raise RecordError(f"{path.name}: its header holds no named tensors")
        for name, entry in self._index.items():
            if not _sound(entry, size - self._start):
                raise RecordError(f"{path.name}: tensor {name!r:.100} is not in its place")

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
        entry = self._index.get(_name(trial, "nll"))
        return entry and entry["shape"]

    def read(self, trial: Trial, compressed_from: list[int] | None = None) -> Tokens | None:
        """The numbers of one trial, None where there are none. compressed_from: by chain, the index of the first token
        that was predicted from a compressed cache; none was where it is left out. Raises RecordError when they are not
        such numbers."""
        shape = self.shape(trial)
        if shape is None:
            return None
        arrays = {}
        with open(self.path, "rb") as f:
            for field, (kind, dtype) in FIELDS.items():
                entry = self._index.get(_name(trial, field))
                if entry is None or entry["dtype"] != kind or len(shape) != 2 or entry["shape"] != shape:
                    raise RecordError(f"{self.path.name}: {field} of {trial} is not {kind} [K, T]")
                begin, end = entry["data_offsets"]
                f.seek(self._start + begin)
                arrays[field] = np.frombuffer(f.read(end - begin), dtype).reshape(entry["shape"])
        chains, length = arrays["nll"].shape
        first = [length] * chains if compressed_from is None else compressed_from
        if chains != len(first):
            raise RecordError(f"{self.path.name}: {trial} has {chains} chains, expected {len(first)}")
        mask = np.arange(length)[None] >= np.array(first)[:, None]
        return Tokens(arrays["nll"], arrays["rank"], arrays["kl"], mask)

    def add(self, found: Mapping[Trial, Tokens]) -> None:
        """Write the file again with more trials, in one move: after a crash it holds all or none of them. A trial that
        is there already, whose record a crash prevented, is replaced."""
        new = {_name(t, f): array for t, tokens in found.items() for f, array in _arrays(tokens).items()}
        header, pieces, at = {}, [], 0
        old = self.path.read_bytes() if self._index else b""
        for name in sorted({*self._index, *new}):
            if name in new:
                kind, shape, data = FIELDS[json.loads(name)[3]][0], list(new[name].shape), new[name].tobytes()
            else:
                entry = self._index[name]
                begin, end = (self._start + o for o in entry["data_offsets"])
                kind, shape, data = entry["dtype"], entry["shape"], old[begin:end]
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(data)]}
            pieces.append(data)
            at += len(data)
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.replace(self.path, len(text).to_bytes(8, "little") + text + b"".join(pieces))
        self._index, self._start = header, 8 + len(text)


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
