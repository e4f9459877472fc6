"""How much of a sequence's history an event wipes out, for every policy alike (docs/DEFINITIONS.md §7).

The history is cut into bins of 64 logical positions; a bin is wiped out for a layer and head that keeps none of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BIN = 64


@dataclass(frozen=True)
class Regions:
    """Over all events, layers and heads of a trial. bins: bins looked at. empty: bins without a survivor. longest: the
    longest run of positions of which nothing is left, after any event."""

    bins: int = 0
    empty: int = 0
    longest: int = 0


def wiped(positions: Tensor, keep: Tensor, length: Tensor, so_far: Tensor) -> Tensor:
    """`so_far` [R, 3] (bins, empty, longest) with one event added: `positions` and `keep` [L, R, H, n] as in an event,
    `length` [R] tokens processed. Entries lie in ascending position."""
    layers, rows, heads, _ = positions.shape
    last = length.view(1, -1, 1, 1) - 1
    # Before each survivor: the survivor (or start) before it. A position that is gone counts for nothing.
    survivor = torch.where(keep, positions, -1)
    reached = survivor.cummax(-1).values
    before = torch.cat([torch.full_like(reached[..., :1], -1), reached[..., :-1]], -1)
    gaps = torch.where(keep, positions - before - 1, 0).amax(-1)
    longest = torch.maximum(gaps, (last - reached[..., -1:]).squeeze(-1)).amax((0, 2))

    # A bin has a survivor once for each survivor that is the first of its bin.
    first = keep & ((before < 0) | (positions // BIN != before // BIN))
    found = first.sum((0, 2, 3))
    total = (length + BIN - 1) // BIN * layers * heads
    return torch.stack([so_far[:, 0] + total, so_far[:, 1] + total - found, so_far[:, 2].maximum(longest)], -1)
