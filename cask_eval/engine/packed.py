"""Quantised storage of keys and values (KIVI, https://arxiv.org/abs/2402.02750): the newest entries in full precision,
the others in a few bits per number.

`footprint.Packing` fixes what is packed and when; here it happens. L layers, S slots, H KV heads, D head dimension,
B blocks of `residual` entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        self._block: PackedBlock | None = None

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
        return self._bytes(counts, self.packed_keys[:rows], self.packed_values[:rows])

    def _bytes(self, counts: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`keys`, `values` [rows]: how many of a head's entries are packed."""

        def unit(x: Tensor) -> int:
            return x.shape[-1] * x.element_size()

        heads = self.key_codes.shape[0] * self.key_codes.shape[2]
        keys, values = keys * heads, values * heads
        groups = keys // self.packing.group
        key_bytes = keys * unit(self.key_codes) + groups * (unit(self.key_scale) + unit(self.key_zero))
        value_bytes = values * (unit(self.value_codes) + unit(self.value_scale) + unit(self.value_zero))
        recent = (counts - keys) * unit(self.key_recent) + (counts - values) * unit(self.value_recent)
        return key_bytes + value_bytes + recent

    # -- a step of several tokens --------------------------------------------------------------------------------

    def begin_block(self, fills: Sequence[int], counts: Sequence[int], source: Tensor) -> PackedBlock:
        """The first rows, which hold `fills` entries per layer and head, are about to take `counts` more. `source`
        [rows, q]: the row's token that each query is.

        A query reads in full precision what had not been packed when its token would have come alone. So what is
        packed in the middle of the step is there in both forms, and each query sees one of them.
        """
        size, device, rows = self.packing.residual, self.key_codes.device, len(counts)
        keys, values = self.packed_keys[:rows, None], self.packed_values[:rows, None]
        settled = indices(fills, device)[:, None] + source
        # How many are packed when each query reads: the storage's state, and what a step then adds to it.
        keys_at = keys + (settled - keys) // size * size
        values_at = values.maximum(settled - size)

        base = [max(0, n - size) for n in fills]  # packed values come after packed keys: all before these are packed
        ends = [n + m for n, m in zip(fills, counts)]
        tail = values + torch.arange(max(e - b for e, b in zip(ends, base)), device=device)
        packed = max(0, max(ends) - 1 - size)
        lead = torch.arange(packed, device=device).expand(rows, -1)
        at = tail[:, None]
        mask = torch.cat(
            [
                lead[:, None] < values_at[..., None],
                (at >= values_at[..., None]) & (at < keys_at[..., None]),
                (at >= keys_at[..., None]) & (at <= settled[..., None]),
            ],
            -1,
        )
        whole = [(r, b, b * size - base[r]) for r, n in enumerate(fills) for b in range(n // size, ends[r] // size)]
        single = [(r, c, c - base[r]) for r, e in enumerate(ends) for c in range(base[r], e - size)]
        last = max(size, (max(ends) - 1) // size * size)
        self._block = PackedBlock(
            mask=mask,
            columns=torch.cat([lead, tail, tail], -1).clamp_max(max(ends) - 1),
            tail=tail,
            old=indices(fills, device),
            counts=indices(counts, device),
            packed=packed,
            packed_keys=last if self.key_codes.shape[3] * size >= last else 0,
            whole=indices(whole, device).T if whole else None,
            single=indices(single, device).T if single else None,
            key_reads=keys_at.masked_fill(~_first(source), 0).sum(-1),
            value_reads=values_at.masked_fill(~_first(source), 0).sum(-1),
        )
        return self._block

    def append_block(self, layer: int, key: Tensor, value: Tensor, index: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Store entries ([rows, H, q, D], the last repeated where a row has fewer); returns keys and values
        [rows, H, C, D] under the columns and the mask of `begin_block`."""
        b, size, rows = self._block, self.packing.residual, key.shape[0]
        full = []
        for recent, new in ((self.key_recent[layer, :rows], key), (self.value_recent[layer, :rows], value)):
            ring = recent.shape[2]
            tail = torch.where(
                (b.tail < b.old[:, None])[:, None, :, None],
                _entries(recent, b.tail % ring),
                _entries(new, (b.tail - b.old[:, None]).clamp(0, new.shape[2] - 1)),
            )
            full.append(tail)
            last = (b.old + b.counts - 1)[:, None]
            token = last - (last - torch.arange(ring, device=key.device)) % ring - b.old[:, None]
            recent.copy_(torch.where((token >= 0)[:, None, :, None], _entries(new, token.clamp_min(0)), recent))
        keys, values = full
        if b.whole is not None:
            row, block, at = b.whole
            run = at[:, None] + torch.arange(size, device=key.device)
            # Advanced indices on both sides of a slice put their axes first: [n, R, H, D].
            codes = self._pack_keys(keys[row[:, None], :, run].transpose(1, 2))
            for buffer, new in zip((self.key_codes, self.key_scale, self.key_zero), codes, strict=True):
                buffer[layer][row, :, block] = new.squeeze(2)
        if b.single is not None:
            row, entry, at = b.single
            codes = self._pack_values(values[row, :, at])
            for buffer, new in zip((self.value_codes, self.value_scale, self.value_zero), codes, strict=True):
                buffer[layer][row, :, entry] = new
        few = keys
        if b.packed_keys:
            lead = self._keys(layer, slice(0, rows), b.packed_keys)
            few = _entries(lead, b.tail.clamp_max(b.packed_keys - 1))
            keys = torch.cat([lead[:, :, : b.packed], few, keys], 2)
        else:
            keys = torch.cat([keys[:, :, :0], few, keys], 2)
        return keys, torch.cat([self._values(layer, slice(0, rows), b.packed), values, values], 2)

    def end_block(self) -> None:
        """After a step of several tokens: what it has packed counts as packed."""
        b, size = self._block, self.packing.residual
        held = b.old + b.counts
        keys, values = self.packed_keys[: len(held)], self.packed_values[: len(held)]
        keys += (held - keys) // size * size
        values.copy_(values.maximum(held - size))

    def block_bytes(self, reads: Tensor) -> Tensor:
        """Bytes read by a row's tokens together, which read `reads` [rows] entries over all layers and heads."""
        return self._bytes(reads, self._block.key_reads, self._block.value_reads)

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
        return (
            _join(self._keys(layer, slots, width), self.key_recent[layer, slots], self.packed_keys[slots], width),
            _join(self._values(layer, slots, width), self.value_recent[layer, slots], self.packed_values[slots], width),
        )

    def _keys(self, layer: int, slots: Tensor | slice, width: int) -> Tensor:
        """[rows, H, n, D]: the packed keys of at least the first `width` entries, as far as there is room for them."""
        p = self.packing
        blocks = -(-min(width, self.key_codes.shape[3] * p.residual) // p.residual)
        codes = unpack(self.key_codes[layer, slots, :, :blocks], p.bits).unflatten(-2, (-1, p.group))
        scale, zero = (x[layer, slots, :, :blocks, :, None] for x in (self.key_scale, self.key_zero))
        return dequantise(codes, scale, zero).flatten(-4, -2)

    def _values(self, layer: int, slots: Tensor | slice, width: int) -> Tensor:
        """[rows, H, n, D]: the packed values of the first `width` entries, as far as there is room for them."""
        p = self.packing
        codes = unpack(self.value_codes[layer, slots, :, :width], p.bits).unflatten(-1, (-1, p.group))
        scale, zero = (x[layer, slots, :, :width, :, None] for x in (self.value_scale, self.value_zero))
        return dequantise(codes, scale, zero).flatten(-2)


@dataclass
class PackedBlock:
    """A step of several tokens. Columns: entries whose keys and values are packed, `packed` of them; then the `tail`
    [rows, t] with packed keys and full values; then the tail again in full.

    mask: [rows, q, C] bool, what each query sees. columns: [rows, C], the entry that each column is. old, counts:
    [rows], entries before the step, and how many come. packed_keys: for how many leading entries packed keys are
    needed. whole, single: [3, n], blocks of keys and single values that are packed in this step: row, number of the
    block or entry, where it begins in the tail. key_reads, value_reads: [rows], packed entries read by all tokens.
    """

    mask: Tensor
    columns: Tensor
    tail: Tensor
    old: Tensor
    counts: Tensor
    packed: int
    packed_keys: int
    whole: Tensor | None
    single: Tensor | None
    key_reads: Tensor
    value_reads: Tensor


def _first(source: Tensor) -> Tensor:
    """[rows, q] bool: which queries are the first for their token."""
    return source == torch.arange(source.shape[1], device=source.device)


def _entries(x: Tensor, at: Tensor) -> Tensor:
    """[rows, H, t, D]: the entries `at` [rows, t] of `x` [rows, H, n, D]."""
    return x.gather(2, at[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _join(packed: Tensor, recent: Tensor, count: Tensor, width: int) -> Tensor:
    """[rows, H, width, D]: the first `count` [rows] entries of `packed` [rows, H, n, D], then those of the ring
    `recent` [rows, H, r, D]."""
    at = torch.arange(width, device=count.device)
    out = recent.index_select(2, at % recent.shape[2])
    n = min(width, packed.shape[2])
    mine = (at[:n] < count[:, None])[:, None, :, None]
    out[:, :, :n] = torch.where(mine, packed[:, :, :n], out[:, :, :n])
    return out
