"""Quantised storage of keys and values (KIVI, https://arxiv.org/abs/2402.02750): the newest entries in full precision,
the others in a few bits per number.

`footprint.Packing` fixes what is packed and when; here it happens. L layers, S slots, H KV heads, D head dimension,
B blocks of `residual` entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cask_eval.engine.contract import Geometry
from cask_eval.engine.transfer import indices
from cask_eval.errors import MethodError
from cask_eval.footprint import Packing

_BITS = {2: torch.int16, 4: torch.int32}
"""An integer of as many bytes as a floating type: 2 → int16, 4 → int32."""


_DOWN = 2**-11
"""How far above the middle between two codes, in steps, a number is still rounded down. Numbers that were quantised
before often lie right in the middle of a new grid, where the last bit of a product would decide over a whole step."""


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (uint8, the shape of `x`), scale and zero [..., 1] in the dtype of `x`, one pair for each [..., n].

    Asymmetric: zero is the least number, which every dtype of x holds exactly; scale is the range over 2^bits − 1,
    rounded up, so that no number lies beyond the last code. Then `dequantise` misses by at most half a scale (and
    2^-11 of it) and one rounding, and equal numbers come back exactly. Computed in fp32. A group with a NaN, an
    infinity, or a range beyond fp32 becomes NaN.
    """
    levels = 2**bits - 1
    zero, top = x.aminmax(dim=-1, keepdim=True)
    wanted = (top.float() - zero.float()) / levels
    scale = wanted.to(x.dtype)
    # Adding one to its bits turns a positive number into the next larger one.
    bigger = (scale.view(_BITS[x.element_size()]) + 1).view(x.dtype)
    scale = torch.where(scale.float() < wanted, bigger, scale)
    step = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    codes = ((x.float() - zero.float()) / step - _DOWN).round().nan_to_num(0).clamp(0, levels)
    return codes.to(torch.uint8), scale, zero


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """code · scale + zero, computed in fp32, in the dtype of `scale`; all broadcast."""
    return (codes.float() * scale.float() + zero.float()).to(scale.dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """[..., D·bits/8] uint8 from codes [..., D] below 2^bits: the first code in the lowest bits of a byte."""
    parts = codes.unflatten(-1, (-1, 8 // bits)).unbind(-1)
    out = parts[0]
    for i, part in enumerate(parts[1:], 1):
        out = out | (part << (bits * i))
    return out


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    return torch.stack([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1).flatten(-2)


class PackedStore:
    """Keys and values of a slot cache, packed. All layers and heads of a slot hold equally many entries.

    key_codes: [L, S, H, B, R, D·bits/8] uint8, with key_scale and key_zero [L, S, H, B, R/group, D]: R = `residual`
    entries make a block. value_codes: [L, S, H, C − R, D·bits/8], with value_scale and value_zero
    [L, S, H, C − R, D/group]. key_recent: [L, S, H, R, D] and value_recent: [L, S, H, R + 1, D] hold the unpacked
    entries, entry i at i mod R and i mod (R + 1). packed_keys, packed_values: [S] int64, how many leading entries of a
    slot are packed.
    """

    def __init__(
        self, geometry: Geometry, slots: int, capacity: int, packing: Packing, device: torch.device | str
    ) -> None:
        """Raises MethodError when the model's head_dim does not divide into groups and bytes."""
        g, p = geometry, packing
        if fault := p.fault(g.head_dim):
            raise MethodError(fault)
        self.packing = p
        blocks, alone = capacity // p.residual, max(0, capacity - p.residual)

        def full(*shape: int) -> Tensor:
            return torch.zeros(g.layers, slots, g.kv_heads, *shape, dtype=g.dtype, device=device)

        def codes(*shape: int) -> Tensor:
            shape = (g.layers, slots, g.kv_heads, *shape, g.head_dim * p.bits // 8)
            return torch.zeros(shape, dtype=torch.uint8, device=device)

        self.key_codes, self.value_codes = codes(blocks, p.residual), codes(alone)
        self.key_scale, self.value_scale = (
            full(blocks, p.residual // p.group, g.head_dim),
            full(alone, g.head_dim // p.group),
        )
        self.key_zero, self.value_zero = torch.zeros_like(self.key_scale), torch.zeros_like(self.value_scale)
        self.key_recent, self.value_recent = full(p.residual, g.head_dim), full(p.residual + 1, g.head_dim)
        self.packed_keys = torch.zeros(slots, dtype=torch.int64, device=device)
        self.packed_values = torch.zeros_like(self.packed_keys)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All storage that is indexed [L, S, …]."""
        keys = self.key_codes, self.key_scale, self.key_zero, self.key_recent
        return (*keys, self.value_codes, self.value_scale, self.value_zero, self.value_recent)

    def reserve(self, capacity: int) -> None:
        """Raises MethodError: only uneven budgets outgrow the planned capacity."""
        raise MethodError("packed storage needs the same number of entries in every layer and head")

    # -- a decode step -------------------------------------------------------------------------------------------

    def append(self, layer: int, key: Tensor, value: Tensor, index: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Store one entry a row ([rows, H, 1, D]) as number `index` [rows, H]; returns keys and values
        [rows, H, width, D] as attention reads them. What lies beyond a row's entries is finite and has no meaning."""
        rows, at = key.shape[0], index[:, :, None, None].expand_as(key)
        for recent, new in ((self.key_recent, key), (self.value_recent, value)):
            recent[layer, :rows].scatter_(2, at % recent.shape[3], new)
        return self._read(layer, slice(0, rows), width)

    def settle(self, fills: Sequence[int]) -> None:
        """After a step: pack what the attention has read in full precision long enough. `fills`: entries that the first
        rows hold per layer and head."""
        size, device = self.packing.residual, self.key_codes.device
        if keys := [(row, fill // size - 1) for row, fill in enumerate(fills) if fill % size == 0]:
            rows, blocks = indices(keys, device).T
            codes, scale, zero = self._pack_keys(self.key_recent[:, rows])
            for buffer, new in ((self.key_codes, codes), (self.key_scale, scale), (self.key_zero, zero)):
                buffer[:, rows, :, blocks] = new.squeeze(3).movedim(1, 0)
            self.packed_keys[rows] = (blocks + 1) * size
        if values := [(row, fill - size - 1) for row, fill in enumerate(fills) if fill > size]:
            rows, at = indices(values, device).T
            # Advanced indices on both sides of a slice put their axis first: [rows, L, H, …].
            codes, scale, zero = self._pack_values(self.value_recent[:, rows, :, at % (size + 1)])
            for buffer, new in ((self.value_codes, codes), (self.value_scale, scale), (self.value_zero, zero)):
                buffer[:, rows, :, at] = new
            self.packed_values[rows] = at + 1

    def used_bytes(self, rows: int, counts: Tensor) -> Tensor:
        """[rows] int64: bytes in use in each of the first `rows` slots, counted from what is packed there and from the
        storage's own element sizes. `counts` [rows]: entries over all layers and heads."""

        def unit(x: Tensor) -> int:
            return x.shape[-1] * x.element_size()

        heads = self.key_codes.shape[0] * self.key_codes.shape[2]
        keys, values = self.packed_keys[:rows] * heads, self.packed_values[:rows] * heads
        groups = keys // self.packing.group
        key_bytes = keys * unit(self.key_codes) + groups * (unit(self.key_scale) + unit(self.key_zero))
        value_bytes = values * (unit(self.value_codes) + unit(self.value_scale) + unit(self.value_zero))
        recent = (counts - keys) * unit(self.key_recent) + (counts - values) * unit(self.value_recent)
        return key_bytes + value_bytes + recent

    # -- events --------------------------------------------------------------------------------------------------

    def place(self, slots: Tensor, keys: Tensor, values: Tensor, counts: Sequence[int]) -> None:
        """Fill the given slots [R] with the first `counts` entries of each row of `keys` and `values`
        [L, R, H, n, D]; whatever the slots held before is gone.

        Everything is packed anew. A value's group lies inside its entry, so that values packed before come back on
        nearly the same grid. A key's group runs over neighbours, and an event gives it new ones: keys packed before are
        rounded once more, by up to half the new scale, at every event.
        """
        size, device, n = self.packing.residual, self.key_codes.device, max(counts)
        keys, values = keys[:, :, :, :n], values[:, :, :, :n]
        blocks, alone = n // size, max(0, n - size)
        packed = self._pack_keys(keys[:, :, :, : blocks * size])
        for buffer, new in zip((self.key_codes, self.key_scale, self.key_zero), packed, strict=True):
            buffer[:, slots, :, :blocks] = new
        packed = self._pack_values(values[:, :, :, :alone])
        for buffer, new in zip((self.value_codes, self.value_scale, self.value_zero), packed, strict=True):
            buffer[:, slots, :, :alone] = new
        count = indices(counts, device)
        self.packed_keys[slots], self.packed_values[slots] = count - count % size, (count - size).clamp_min(0)
        for recent, packed_, whole in (
            (self.key_recent, self.packed_keys, keys),
            (self.value_recent, self.packed_values, values),
        ):
            first, ring = packed_[slots, None], recent.shape[3]
            at = first + (torch.arange(ring, device=device) - first) % ring
            there = (at < count[:, None])[None, :, None, :, None]
            at = at.clamp_max(n - 1)[None, :, None, :, None].expand(*whole.shape[:3], ring, whole.shape[4])
            recent[:, slots] = whole.gather(3, at).masked_fill(~there, 0)

    def read(self, slots: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values [L, R, H, width, D] of the given slots [R], dequantised. What lies beyond a row's entries is
        finite and has no meaning."""
        layers = [self._read(layer, slots, width) for layer in range(self.key_codes.shape[0])]
        keys, values = zip(*layers, strict=True)
        return torch.stack(keys), torch.stack(values)

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`."""
        for buffer in self.buffers:
            buffer[:, target] = buffer[:, source]
        for count in (self.packed_keys, self.packed_values):
            count[target] = count[source]

    # -- packing -------------------------------------------------------------------------------------------------

    def _pack_keys(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """keys [..., b·R, D] → codes [..., b, R, D·bits/8], scale and zero [..., b, R/group, D]."""
        p = self.packing
        groups = keys.unflatten(-2, (-1, p.residual // p.group, p.group)).transpose(-1, -2)
        codes, scale, zero = quantise(groups, p.bits)
        codes = codes.transpose(-1, -2).flatten(-3, -2)
        return pack(codes, p.bits), scale.squeeze(-1), zero.squeeze(-1)

    def _pack_values(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """values [..., D] → codes [..., D·bits/8], scale and zero [..., D/group]."""
        codes, scale, zero = quantise(values.unflatten(-1, (-1, self.packing.group)), self.packing.bits)
        return pack(codes.flatten(-2), self.packing.bits), scale.squeeze(-1), zero.squeeze(-1)

    def _read(self, layer: int, slots: Tensor | slice, width: int) -> tuple[Tensor, Tensor]:
        p = self.packing
        blocks = -(-min(width, self.key_codes.shape[3] * p.residual) // p.residual)
        codes = unpack(self.key_codes[layer, slots, :, :blocks], p.bits).unflatten(-2, (-1, p.group))
        scale, zero = (x[layer, slots, :, :blocks, :, None] for x in (self.key_scale, self.key_zero))
        keys = dequantise(codes, scale, zero).flatten(-4, -2)
        codes = unpack(self.value_codes[layer, slots, :, :width], p.bits).unflatten(-1, (-1, p.group))
        scale, zero = (x[layer, slots, :, :width, :, None] for x in (self.value_scale, self.value_zero))
        values = dequantise(codes, scale, zero).flatten(-2)
        return (
            _join(keys, self.key_recent[layer, slots], self.packed_keys[slots], width),
            _join(values, self.value_recent[layer, slots], self.packed_values[slots], width),
        )


def _join(packed: Tensor, recent: Tensor, count: Tensor, width: int) -> Tensor:
    """[rows, H, width, D]: the first `count` [rows] entries of `packed` [rows, H, n, D], then those of the ring
    `recent` [rows, H, r, D]."""
    at = torch.arange(width, device=count.device)
    out = recent.index_select(2, at % recent.shape[2])
    n = min(width, packed.shape[2])
    mine = (at[:n] < count[:, None])[:, None, :, None]
    out[:, :, :n] = torch.where(mine, packed[:, :, :n], out[:, :, :n])
    return out
