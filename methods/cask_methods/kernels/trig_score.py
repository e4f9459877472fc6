"""TriAttention's score over the cache in two passes: raw scores of every query head with their moments, then z-scores
and the maximum or mean over a KV head's query heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cask_eval.engine.kernels import on

_BLOCK_N = 32


def takes(keys: Tensor, statistics: Tensor) -> bool:
    """Whether the kernel can do it: keys of at most 32 bits and 256 numbers a head, statistics in fp32."""
    floating = keys.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return floating and statistics.dtype == torch.float32 and keys.shape[-1] <= 256 and keys.numel() > 0


def score(
    keys: Tensor,
    candidates: Tensor,
    c_re: Tensor,
    c_im: Tensor,
    spread: Tensor,
    turns: Tensor | tuple,
    *,
    normalise: bool,
    largest: bool,
) -> Tensor:
    """Scores [L, R, H, n] fp32 of keys [L, R, H, n, 2F], 0 where `candidates` [L, R, H, n] is False.

    c_re, c_im: [L, Hq, F] fp32. spread: [L, Hq, F] fp32, what |k_f| is multiplied by. turns: e^{iω(T + δ)} times the
    rotary scaling, complex128 [A, R, F], of which the largest sum counts; () leaves the sum of cosines out. normalise:
    z-scores per query head, with moments in fp64. largest: the maximum over a KV head's query heads, else the mean.
    The formulas are those of `scorers.triattention`.
    """
    layers, rows, heads, n, dim = keys.shape
    half, groups, device = dim // 2, c_re.shape[1] // heads, keys.device
    keys = keys if keys.stride(-1) == 1 else keys.contiguous()
    candidates = candidates.contiguous().view(torch.uint8)
    count = len(turns)
    turning = torch.view_as_real(turns).contiguous() if count else torch.zeros(1, dtype=torch.float64, device=device)
    raw = torch.empty(layers, rows, heads, groups, n, dtype=torch.float32, device=device)
    moments = torch.empty(layers, rows, heads, groups, 2, dtype=torch.float64, device=device)
    out = torch.empty(layers, rows, heads, n, dtype=torch.float32, device=device)
    sizes = dict(G=groups, BLOCK_N=_BLOCK_N, num_warps=4, enable_fp_fusion=True)
    with on(keys):
        _raw[(layers * rows * heads,)](
            keys,
            candidates,
            c_re.contiguous(),
            c_im.contiguous(),
            spread.contiguous(),
            turning,
            raw,
            moments,
            rows,
            heads,
            n,
            *keys.stride()[:4],
            TURNS=count,
            F=half,
            BLOCK_G=max(16, triton.next_power_of_2(groups)),
            BLOCK_F=max(16, triton.next_power_of_2(half)),
            num_stages=2,
            **sizes,
        )
        _finish[(layers * rows * heads, triton.cdiv(n, _BLOCK_N))](
            raw,
            moments,
            candidates,
            out,
            n,
            NORMALISE=normalise,
            LARGEST=largest,
            BLOCK_G=triton.next_power_of_2(groups),
            **sizes,
        )
    return out


@triton.jit
def _turned(centre_re, centre_im, turns, at, F: tl.constexpr, BLOCK_F: tl.constexpr):
    """The weights c·e^{iω(T + δ)}, multiplied in fp64."""
    frequency = tl.arange(0, BLOCK_F)
    place = turns + (at * F + frequency) * 2
    turn_re = tl.load(place, mask=frequency < F, other=0.0)[None, :]
    turn_im = tl.load(place + 1, mask=frequency < F, other=0.0)[None, :]
    re = centre_re * turn_re - centre_im * turn_im
    im = centre_re * turn_im + centre_im * turn_re
    return re.to(tl.float32), im.to(tl.float32)


@triton.jit
def _raw(
    keys,
    candidates,
    c_re,
    c_im,
    spread,
    turns,
    raw,
    moments,
    rows,
    heads,
    n,
    keys_l,
    keys_r,
    keys_h,
    keys_n,
    TURNS: tl.constexpr,
    G: tl.constexpr,
    F: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)  # offsets into a large cache need 64 bits
    head, row, layer = program % heads, program // heads % rows, program // heads // rows
    keys += layer * keys_l + row * keys_r + head * keys_h
    group, frequency, step = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_N)
    real = (group < G)[:, None] & (frequency < F)[None, :]
    at = ((layer * heads + head) * G + group)[:, None] * F + frequency[None, :]
    centre_re = tl.load(c_re + at, mask=real, other=0.0).to(tl.float64)
    centre_im = tl.load(c_im + at, mask=real, other=0.0).to(tl.float64)
    aside = tl.load(spread + at, mask=real, other=0.0)

    w_re, w_im = aside, aside
    if TURNS == 1:
        w_re, w_im = _turned(centre_re, centre_im, turns, row, F, BLOCK_F)

    count = tl.zeros([], tl.float64)
    mean = tl.zeros([BLOCK_G], tl.float64)
    squares = tl.zeros([BLOCK_G], tl.float64)
    for begin in range(0, n, BLOCK_N):
        entry = begin + step
        wide = entry.to(tl.int64)
        tile = (entry < n)[:, None] & (frequency < F)[None, :]
        place = keys + wide[:, None] * keys_n + frequency[None, :]
        k_re = tl.load(place, mask=tile, other=0.0).to(tl.float32)
        k_im = tl.load(place + F, mask=tile, other=0.0).to(tl.float32)
        size = tl.sqrt_rn(k_re * k_re + k_im * k_im)
        scores = tl.dot(aside, tl.trans(size), input_precision="ieee")
        if TURNS > 0:
            sharp = tl.full([BLOCK_G, BLOCK_N], float("-inf"), tl.float32)
            for turn in range(TURNS):
                if TURNS > 1:
                    w_re, w_im = _turned(centre_re, centre_im, turns, turn * rows + row, F, BLOCK_F)
                cosines = tl.dot(w_re, tl.trans(k_re), input_precision="ieee")
                cosines += tl.dot(w_im, tl.trans(k_im), input_precision="ieee")
                sharp = tl.maximum(sharp, cosines, propagate_nan=tl.PropagateNan.ALL)
            scores += sharp
        live = tl.load(candidates + program * n + entry, mask=entry < n, other=0) != 0
        # What stands in an entry that does not compete may be anything, NaN included.
        scores = tl.where(live[None, :], scores, 0.0)
        tl.store(
            raw + (program * G + group)[:, None] * n + wide[None, :],
            scores,
            mask=(group < G)[:, None] & (entry < n)[None, :],
        )
        # Moments of this block, joined to those before it (Chan, Golub and LeVeque, https://doi.org/10.2307/2683386).
        exact = scores.to(tl.float64)
        new = tl.sum(live.to(tl.float64), 0)
        its_mean = tl.sum(exact, 1) / tl.maximum(new, 1.0)
        off = tl.where(live[None, :], exact - its_mean[:, None], 0.0)
        both = tl.maximum(count + new, 1.0)
        apart = its_mean - mean
        squares += tl.sum(off * off, 1) + apart * apart * (count * new / both)
        mean += apart * (new / both)
        count += new
    at = (program * G + group) * 2
    tl.store(moments + at, mean, mask=group < G)
    tl.store(moments + at + 1, tl.sqrt(squares / tl.maximum(count, 1.0)), mask=group < G)


@triton.jit
def _finish(
    raw,
    moments,
    candidates,
    out,
    n,
    NORMALISE: tl.constexpr,
    LARGEST: tl.constexpr,
    G: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_G)
    entry = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = (group < G)[:, None] & (entry < n)[None, :]
    z = tl.load(raw + (program * G + group)[:, None] * n + entry[None, :], mask=tile, other=0.0)
    if NORMALISE:
        at = (program * G + group) * 2
        mean = tl.load(moments + at, mask=group < G, other=0.0)
        sigma = tl.load(moments + at + 1, mask=group < G, other=1.0)
        sigma = tl.where(sigma < 1e-6, 1e-6, sigma)  # unlike maximum, leaves NaN
        z = ((z.to(tl.float64) - mean[:, None]) / sigma[:, None]).to(tl.float32)
    # tl.max passes over NaN.
    broken = tl.max(((z != z) & tile).to(tl.int32), 0) != 0
    if LARGEST:
        score = tl.max(tl.where(tile, z, float("-inf")), 0)
    else:
        score = tl.sum(tl.where(tile, z, 0.0), 0) / G
    score = tl.where(broken, float("nan"), score)
    live = tl.load(candidates + program * n + entry, mask=entry < n, other=0) != 0
    tl.store(out + program * n + entry, tl.where(live, score, 0.0), mask=entry < n)
