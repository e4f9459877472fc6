"""One query token's grouped-query attention over the entries that exist.

One program per row, KV head and chunk of `CHUNK` entries reads no more of the cache than is used, with the online
softmax of https://arxiv.org/abs/2205.14135; a second kernel joins the chunks, as https://pytorch.org/blog/flash-decoding
does. Chunks begin at fixed entries and are joined in order, so that what a row gets does not depend on how wide its
company is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cask_eval.engine.kernels import interpreted, on

CHUNK = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LOG2E = 1.4426950408889634


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel can do it: one floating type of at most 32 bits, at most 256 numbers a head, at most 64 query
    heads per KV head."""
    same = query.dtype == key.dtype == value.dtype
    return same and query.dtype in _DTYPES and query.shape[-1] <= 256 and query.shape[1] <= 64 * key.shape[1]


def attend(
    query: Tensor, key: Tensor, value: Tensor, counts: Tensor, more: int, bias: Tensor | None, scaling: float
) -> Tensor:
    """query [B, H·G, 1, D] over key and value [B, H, C, D], of which the first `counts` [B, H] + `more` entries exist,
    → [B, 1, H·G, D]. bias: added to the logits, [B, H or 1, 1, C], or None. A head without entries gives 0.

    Logits, softmax and sums are fp32; probabilities are rounded to the type of `value` before they meet it, as fused
    attention does. An operator of its own, so that `engine.recorded` sees it."""
    return torch.ops.cask_eval.decode_attention(query, key, value, counts, more, bias, scaling)


_library = torch.library.Library("cask_eval", "FRAGMENT")
_library.define(
    "decode_attention(Tensor query, Tensor key, Tensor value, Tensor counts, int more, Tensor? bias, float scaling)"
    " -> Tensor"
)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, counts: Tensor, more: int, bias: Tensor | None, scaling: float
) -> Tensor:
    batch, query_heads, _, dim = query.shape
    heads, width = key.shape[1:3]
    groups = query_heads // heads
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    out = torch.empty(batch, 1, query_heads, dim, dtype=query.dtype, device=query.device)
    chunks = max(1, -(-width // CHUNK))
    # Chunks of one row leave sums and maxima behind, in fp32; a single one writes what is asked for.
    sums = out if chunks == 1 else out.new_empty(batch * heads, chunks, groups, dim, dtype=torch.float32)
    scale = out if chunks == 1 else out.new_empty(batch * heads, chunks, groups, 2, dtype=torch.float32)
    bias_strides = (0, 0, 0)
    if bias is not None:
        bias = bias.expand(batch, heads, 1, width)
        bias_strides = (bias.stride(0), bias.stride(1), bias.stride(3))
    shape = dict(
        CHUNKS=chunks,
        G=groups,
        D=dim,
        BLOCK_G=max(16, triton.next_power_of_2(groups)),
        BLOCK_D=max(16, triton.next_power_of_2(dim)),
        enable_fp_fusion=True,  # the default of Triton before 3.10
    )
    with on(query):
        _chunk[(batch * heads, chunks)](
            query,
            key,
            value,
            counts,
            query if bias is None else bias,
            out,
            sums,
            scale,
            scaling * _LOG2E,
            heads,
            width,
            more,
            query.stride(0),
            query.stride(1),
            key.stride(0),
            key.stride(1),
            key.stride(2),
            value.stride(0),
            value.stride(1),
            value.stride(2),
            counts.stride(0),
            counts.stride(1),
            *bias_strides,
            BIASED=bias is not None,
            # The interpreter multiplies the bits of bfloat16 as if they were integers; in fp32 its products are exact.
            WIDEN=interpreted(),
            CHUNK_N=CHUNK,
            BLOCK_N=64 if query.element_size() < 4 and dim <= 128 else 32,
            num_warps=4,
            num_stages=2,
            **shape,
        )
        if chunks > 1:
            _join[(batch * heads,)](out, sums, scale, num_warps=4, **shape)
    return out


_library.impl("decode_attention", _attend, "CompositeExplicitAutograd")


@triton.jit
def _chunk(
    query,
    key,
    value,
    counts,
    bias,
    out,
    sums,
    scale,
    scaling,
    heads,
    width,
    more,
    query_b,
    query_h,
    key_b,
    key_h,
    key_n,
    value_b,
    value_h,
    value_n,
    counts_b,
    counts_h,
    bias_b,
    bias_h,
    bias_n,
    BIASED: tl.constexpr,
    WIDEN: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK_N: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)  # offsets into a large cache need 64 bits
    chunk = tl.program_id(1)
    row, head = pair // heads, pair % heads
    group, column, step = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    within = (group < G)[:, None] & (column < D)[None, :]

    at = row * query_b + (head * G + group)[:, None] * query_h + column[None, :]
    q = tl.load(query + at, mask=within, other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    count = tl.minimum(tl.load(counts + row * counts_b + head * counts_h) + more, width).to(tl.int32)
    start = chunk * CHUNK_N
    end = tl.minimum(start + CHUNK_N, count)
    key += row * key_b + head * key_h
    value += row * value_b + head * value_h
    bias += row * bias_b + head * bias_h

    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for begin in range(start, end, BLOCK_N):
        entry = begin + step
        there = entry < end
        wide = entry.to(tl.int64)
        tile = there[:, None] & (column < D)[None, :]
        k = tl.load(key + wide[:, None] * key_n + column[None, :], mask=tile, other=0.0)
        if WIDEN:
            k = k.to(tl.float32)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        if BIASED:
            logits += tl.load(bias + wide * bias_n, mask=there, other=0.0).to(tl.float32)[None, :] * 1.4426950408889634
        logits = tl.where(there[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        # A bias may hide all entries so far; -inf less -inf would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(top - base)
        v = tl.load(value + wide[:, None] * value_n + column[None, :], mask=tile, other=0.0)
        part = p.to(v.dtype)
        if WIDEN:
            part, v = part.to(tl.float32), v.to(tl.float32)
        acc = acc * shrink[:, None] + tl.dot(part, v, input_precision="ieee")
        total = total * shrink + tl.sum(p, 1)
        top = higher

    if CHUNKS == 1:
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        at = (pair * G + group)[:, None] * D + column[None, :]
        tl.store(out + at, result.to(out.dtype.element_ty), mask=within)
    else:
        place = (pair * CHUNKS + chunk) * G + group
        tl.store(sums + place[:, None] * D + column[None, :], acc, mask=within)
        tl.store(scale + place * 2, top, mask=group < G)
        tl.store(scale + place * 2 + 1, total, mask=group < G)


@triton.jit
def _join(
    out,
    sums,
    scale,
    CHUNKS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    group, column = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    within = (group < G)[:, None] & (column < D)[None, :]
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    # One after the other: a chunk without entries adds exact zeros, wherever it stands.
    for chunk in range(CHUNKS):
        place = (pair * CHUNKS + chunk) * G + group
        its_top = tl.load(scale + place * 2, mask=group < G, other=float("-inf"))
        its_total = tl.load(scale + place * 2 + 1, mask=group < G, other=0.0)
        its_acc = tl.load(sums + place[:, None] * D + column[None, :], mask=within, other=0.0)
        higher = tl.maximum(top, its_top)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        old, new = tl.exp2(top - base), tl.exp2(its_top - base)
        acc = acc * old[:, None] + its_acc * new[:, None]
        total = total * old + its_total * new
        top = higher
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    at = (pair * G + group)[:, None] * D + column[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=within)
