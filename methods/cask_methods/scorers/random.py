"""Random scores from a counter, so that a trial's evictions depend on nothing but its own key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (the operator's own is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64 (https://doi.org/10.1145/2714064.2660195) on int64 tensors: the counter's increment and the
    finaliser. Integer products wrap modulo 2^64, on CPU and CUDA alike, so the result is exact everywhere."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def counter_uniform(*keys: Tensor) -> Tensor:
    """fp32 multiples of 2^-24 in [0, 1), one per broadcast element of the int64 `keys`, each absorbed in turn."""
    state = _mix(keys[0])
    for key in keys[1:]:
        state = _mix(state ^ key)
    return _shift(state, 40).to(torch.float32) * 2.0**-24


@dataclass(frozen=True)
class RandomScorer:
    """Uniform scores keyed by (trial seed, layer, KV head, event, logical position).

    sampling: ``thinning`` draws anew at every event, so an entry's chance of survival falls with every event it
        lives through and ages are geometric; ``reservoir`` gives each position one draw for its life, so the kept
        set is a uniform sample of the whole history.

    Scores have 24 bits. Two of n entries tie with probability below n²·2^-25 (0.2 % at n = 256), and then the lower
    position is kept.
    """

    name: ClassVar[str] = "random"

    sampling: str = "thinning"

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n] fp32; 0 where `candidates` is False."""
        layers, rows, heads, _ = entries.positions.shape
        device = entries.positions.device
        layer = torch.arange(layers, device=device).view(-1, 1, 1, 1)
        head = torch.arange(heads, device=device).view(1, 1, -1, 1)
        event = entries.events if self.sampling == "thinning" else torch.full_like(entries.events, -1)
        draw = counter_uniform(entries.seeds.view(1, -1, 1, 1), layer, head, event.view(1, -1, 1, 1), entries.positions)
        return draw.masked_fill(~candidates, 0)
