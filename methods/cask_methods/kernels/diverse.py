"""α's greedy picks, one program per row: all picks in one launch instead of several launches a pick."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cask_eval.engine.kernels import on

_LONGEST = 1 << 13


def takes(scores: Tensor, unit: Tensor) -> bool:
    """Whether the kernel can do it: fp32 throughout, at most 8,192 entries a row (it holds them in registers)."""
    return scores.dtype == unit.dtype == torch.float32 and 0 < scores.shape[-1] <= _LONGEST


def pick(
    left: Tensor,
    total: Tensor,
    size: Tensor,
    weight: Tensor,
    quota: Tensor,
    steps: int,
    unit: Tensor,
    gram: Tensor | None,
    penalty: str,
) -> tuple[Tensor, Tensor]:
    """Picks in order and m of each when it was picked, [N, steps] int64 and fp32; 0 beyond a row's quota.

    left: [N, n] scores, -inf where an entry does not compete. total: [N, n], the sum or maximum of max(0, cos) over
    what S begins with, of `size` [N, 1] entries. weight: [N, 1]. unit: [N, n, E]. gram: the cosines as [N·n, n], or
    None, where they are taken from `unit` pick by pick. Of equal gains the lowest index is picked; a gain of NaN counts
    as infinite.
    """
    count, n = left.shape
    order = torch.zeros(count, steps, dtype=torch.int64, device=left.device)
    burden = torch.zeros(count, steps, dtype=left.dtype, device=left.device)
    if not count or not steps:
        return order, burden
    block = triton.next_power_of_2(n)
    unit = unit.contiguous()
    with on(left):
        _pick[(count,)](
            left.contiguous(),
            total.contiguous(),
            size.contiguous(),
            weight.contiguous(),
            quota.contiguous(),
            unit if gram is None else gram.contiguous(),
            order,
            burden,
            n,
            steps,
            unit.shape[-1],
            GRAM=gram is not None,
            PENALTY=penalty,
            BLOCK_N=block,
            BLOCK_E=max(1, min(16, 16384 // block)),
            num_warps=4 if block <= 1024 else 8,
            enable_fp_fusion=False,  # gains are rounded as the eager operators round them
        )
    return order, burden


@triton.jit
def _pick(
    scores,
    start,
    size,
    weight,
    quota,
    vectors,
    order,
    burden,
    n,
    steps,
    width,
    GRAM: tl.constexpr,
    PENALTY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    entry, part = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_E)
    there = entry < n
    left = tl.load(scores + row * n + entry, mask=there, other=float("-inf"))
    total = tl.load(start + row * n + entry, mask=there, other=0.0)
    price = tl.load(weight + row)
    already = tl.load(size + row)
    wanted = tl.minimum(tl.load(quota + row), steps).to(tl.int32)
    for step in range(0, wanted):
        m = total
        if PENALTY == "mean":
            # Plain division is two units in the last place off on a GPU, and picks may hang on them.
            m = tl.div_rn(total, tl.zeros([BLOCK_N], tl.float32) + tl.maximum(already + step, 1).to(tl.float32))
        gain = left - m * price
        gain = tl.where(gain != gain, float("inf"), gain)
        gain = tl.where(there, gain, float("-inf"))
        best = tl.argmax(gain, 0, tie_break_left=True)
        here = entry == best
        tl.store(order + row * steps + step, best.to(tl.int64))
        tl.store(burden + row * steps + step, tl.sum(tl.where(here, m, 0.0), 0))
        left = tl.where(here, float("-inf"), left)
        if GRAM:
            cosine = tl.load(vectors + (row * n + best) * n + entry, mask=there, other=0.0)
        else:
            cosine = tl.zeros([BLOCK_N], tl.float32)
            for begin in range(0, width, BLOCK_E):
                number = begin + part
                its = tl.load(vectors + (row * n + best) * width + number, mask=number < width, other=0.0)
                tile = there[:, None] & (number < width)[None, :]
                at = (row * n + entry)[:, None] * width + number[None, :]
                cosine += tl.sum(tl.load(vectors + at, mask=tile, other=0.0) * its[None, :], 1)
        if PENALTY == "max":
            total = tl.maximum(total, cosine)
        else:
            total += tl.maximum(cosine, 0.0)
