"""The stable top-k by counting: an entry is kept when fewer candidates than the quota come before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cask_eval.engine.kernels import on

_LONGEST = 1 << 14
_BLOCK = 64


def takes(scores: Tensor) -> bool:
    """Whether the kernel can do it: fp32 scores, at most 16,384 a row, because counting is quadratic."""
    return scores.dtype == torch.float32 and scores.shape[-1] <= _LONGEST and scores.numel() > 0


def highest(scores: Tensor, candidates: Tensor, quota: Tensor) -> Tensor:
    """As `cask_methods.selectors.top_k.highest`, to the bit: equal scores go to the lower index, NaN before numbers."""
    n = scores.shape[-1]
    quota = quota.expand(scores.shape[:-1]).reshape(-1)
    mask = torch.empty(candidates.shape, dtype=torch.bool, device=scores.device)
    flat, among = scores.reshape(-1, n).contiguous(), candidates.reshape(-1, n).contiguous()
    with on(scores):
        _mark[(len(flat), triton.cdiv(n, _BLOCK))](
            flat, among.view(torch.uint8), quota.contiguous(), mask.view(torch.uint8), n, BLOCK=_BLOCK, num_warps=4
        )
    return mask


@triton.jit
def _ordinal(x):
    """fp32 as int32 of the same order; both zeros are one, and every NaN is above infinity."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    ordered = tl.where(bits < 0, -size, size)
    return tl.where(size > 0x7F800000, 0x7FFFFFFF, ordered)


@triton.jit
def _mark(scores, candidates, quota, mask, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scores += row * n
    candidates += row * n
    step = tl.arange(0, BLOCK)
    mine = tl.program_id(1) * BLOCK + step
    own = _ordinal(tl.load(scores + mine, mask=mine < n, other=0.0))
    before = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, n, BLOCK):
        other = begin + step
        competes = tl.load(candidates + other, mask=other < n, other=0) != 0
        its = _ordinal(tl.load(scores + other, mask=other < n, other=0.0))
        level = (its[None, :] == own[:, None]) & (other[None, :] < mine[:, None])
        first = (its[None, :] > own[:, None]) | level
        before += tl.sum((first & competes[None, :]).to(tl.int32), 1)
    chosen = (tl.load(candidates + mine, mask=mine < n, other=0) != 0) & (before < tl.load(quota + row))
    tl.store(mask + row * n + mine, chosen.to(tl.uint8), mask=mine < n)
