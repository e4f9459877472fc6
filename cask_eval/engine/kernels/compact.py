"""Compaction: what an event keeps moves to the front of its slot, one program per layer, row and KV head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cask_eval.engine.kernels import on

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(keys: Tensor, values: Tensor, to_keys: Tensor, to_values: Tensor) -> bool:
    """Whether the kernel can do it: keys and values of one floating type of at most 32 bits and of one shape, in the
    type of the slots, at most 256 numbers a head."""
    same = {x.dtype for x in (keys, values, to_keys, to_values)} == {keys.dtype}
    return same and keys.dtype in _DTYPES and keys.shape == values.shape and keys.shape[-1] <= 256


def place(
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    keep: Tensor,
    kept: int,
    to_keys: Tensor,
    to_values: Tensor,
    to_positions: Tensor,
    fill: Tensor,
) -> Tensor:
    """Put the entries that `keep` [L, R, H, n] marks, at most `kept` a head, at the front of the given slots [R], in
    their order: keys and values [L, R, H, n, D] and positions [L, R, H, n] go to `to_keys`, `to_values`
    [L, S, H, C, D] and `to_positions` [L, S, H, C], where -1 follows; `fill` [L, S, H] becomes their number. Keys and
    values behind them stay what they were. Returns where each came from, [L, R, H, kept] int64, 0 where there is none.
    """
    layers, rows, heads, n, dim = keys.shape
    capacity = to_positions.shape[-1]
    # Reading from where another warp writes already would be a race: what lies in the slots themselves is copied.
    keys, values = (_apart(x, y) for x, y in ((keys, to_keys), (values, to_values)))
    keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (keys, values))
    positions = _apart(positions, to_positions)
    order = torch.zeros(layers, rows, heads, kept, dtype=torch.int64, device=keys.device)
    keep, slots = keep.expand(positions.shape).view(torch.uint8), slots.contiguous()
    with on(keys):
        _place[(layers * rows * heads,)](
            slots,
            keys,
            values,
            positions,
            keep,
            to_keys,
            to_values,
            to_positions,
            fill,
            order,
            rows,
            heads,
            n,
            kept,
            capacity,
            *keys.stride()[:4],
            *values.stride()[:4],
            *positions.stride(),
            *keep.stride(),
            *to_keys.stride()[:4],
            *to_values.stride()[:4],
            *to_positions.stride()[:3],
            *fill.stride()[:2],
            D=dim,
            BLOCK_D=triton.next_power_of_2(dim),
            BLOCK_N=32,
            num_warps=4,
        )
    return order


def _apart(x: Tensor, target: Tensor) -> Tensor:
    return x.clone() if x.untyped_storage().data_ptr() == target.untyped_storage().data_ptr() else x


@triton.jit
def _place(
    slots,
    keys,
    values,
    positions,
    keep,
    to_keys,
    to_values,
    to_positions,
    fill,
    order,
    rows,
    heads,
    n,
    kept,
    capacity,
    keys_l,
    keys_r,
    keys_h,
    keys_n,
    values_l,
    values_r,
    values_h,
    values_n,
    positions_l,
    positions_r,
    positions_h,
    positions_n,
    keep_l,
    keep_r,
    keep_h,
    keep_n,
    to_keys_l,
    to_keys_r,
    to_keys_h,
    to_keys_n,
    to_values_l,
    to_values_r,
    to_values_h,
    to_values_n,
    to_positions_l,
    to_positions_r,
    to_positions_h,
    fill_l,
    fill_r,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)  # offsets into a large cache need 64 bits
    head, row, layer = program % heads, program // heads % rows, program // heads // rows
    slot = tl.load(slots + row)
    keys += layer * keys_l + row * keys_r + head * keys_h
    values += layer * values_l + row * values_r + head * values_h
    positions += layer * positions_l + row * positions_r + head * positions_h
    keep += layer * keep_l + row * keep_r + head * keep_h
    to_keys += layer * to_keys_l + slot * to_keys_r + head * to_keys_h
    to_values += layer * to_values_l + slot * to_values_r + head * to_values_h
    to_positions += layer * to_positions_l + slot * to_positions_r + head * to_positions_h
    order += program * kept

    step, column = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    done = 0
    for begin in range(0, n, BLOCK_N):
        entry = begin + step
        wide = entry.to(tl.int64)
        stays = tl.load(keep + wide * keep_n, mask=entry < n, other=0).to(tl.int32)
        target = done + tl.cumsum(stays, 0) - stays
        # `kept` bounds what may be written, whatever `keep` says.
        moves = (stays != 0) & (target < kept)
        goes = target.to(tl.int64)
        tl.store(order + goes, wide, mask=moves)
        tl.store(to_positions + goes, tl.load(positions + wide * positions_n, mask=moves, other=-1), mask=moves)
        tile = moves[:, None] & (column < D)[None, :]
        k = tl.load(keys + wide[:, None] * keys_n + column[None, :], mask=tile, other=0.0)
        tl.store(to_keys + goes[:, None] * to_keys_n + column[None, :], k, mask=tile)
        v = tl.load(values + wide[:, None] * values_n + column[None, :], mask=tile, other=0.0)
        tl.store(to_values + goes[:, None] * to_values_n + column[None, :], v, mask=tile)
        done += tl.sum(stays, 0)
    done = tl.minimum(done, kept)
    tl.store(fill + layer * fill_l + slot * fill_r + head, done.to(tl.int64))
    for begin in range(0, capacity, BLOCK_N):
        entry = begin + step
        empty = (entry >= done) & (entry < capacity)
        tl.store(to_positions + entry, tl.full([BLOCK_N], -1, tl.int64), mask=empty)
