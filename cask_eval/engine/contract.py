"""What a method sees and what it answers. Tensors only; no hooks, no model.

Shapes: L layers, R sequences that compress at the same moment, H KV heads, n resident entries, D head dimension,
G query heads per KV head, F = D/2 rotary frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """The model, as far as a method may know it.

    inv_freq: [F] fp64, the rotary module's own frequencies. scaling: the rotary attention_scaling s that
    multiplies every rotated query and key.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    inv_freq: Tensor
    scaling: float
    dtype: torch.dtype
    name: str = ""

    @property
    def groups(self) -> int:
        return self.query_heads // self.kv_heads

    @property
    def entry_bytes(self) -> int:
        """Bytes of one full-precision key and value of one KV head."""
        return 2 * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Entries:
    """The resident entries of R sequences just before an event.

    keys, values: [L, R, H, n, D]; keys are rotated at their logical positions. positions: [L, R, H, n] int64
    logical positions, ascending along n, then -1 where a shorter sequence or head has no entry. prompt_tokens,
    length, seeds, events: [R] int64: prompt length, tokens processed so far (the next logical position), the
    trial's random key, and how many events the trial has had.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    prompt_tokens: Tensor
    length: Tensor
    seeds: Tensor
    events: Tensor
    geometry: Geometry


class Scorer(Protocol):
    """How much is each resident entry worth?"""

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L or 1, R, H or 1, n], fp32, higher is kept. A layer or head axis of size 1 says that the
        decision is shared over layers or heads. `candidates` [L, R, H, n] bool marks the entries that compete;
        what stands elsewhere is ignored, but must not be NaN."""
        ...


class Selector(Protocol):
    """Which set do we keep, given scores?"""

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Tensor:
        """Mask [L or 1, R, H or 1, n] bool, a subset of `candidates` (same shape as `scores`) with exactly
        `quota` [L or 1, R, H or 1] entries a row. No row's quota exceeds its candidates."""
        ...


class CalibratedScorer(Scorer, Protocol):
    """A scorer that needs statistics measured on the model beforehand."""

    def bind(self, geometry: Geometry, calibration: str) -> Scorer:
        """The scorer with its statistics loaded from a file and checked against the model. Raises MethodError."""
        ...
