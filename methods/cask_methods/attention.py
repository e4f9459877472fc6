"""Attention of the remembered queries to the resident entries, recomputed at an event."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from cask_eval.engine.contract import Entries
from cask_eval.errors import MethodError

GROUPS = ("mean", "max_logits")
POOLINGS = ("max", "avg")

_CHUNK_ELEMENTS = 1 << 26


def history(entries: Entries, window: int) -> Tensor:
    """[L, R, H, n] bool: the resident entries older than the newest `window` tokens."""
    return entries.resident & (entries.positions < (entries.length - window).view(1, -1, 1, 1))


def probabilities(entries: Entries, window: int, among: Tensor | None = None, *, max_logits: bool = False) -> Tensor:
    """[L, R, H, G, W, n] fp32: softmax(q·k/√D), with the entries' bias if they have one, of the newest W = `window`
    remembered queries, oldest first.

    Keys and queries are rotated already, the rotary attention_scaling included. The softmax runs over the entries of
    `among` [L, R, H, n] bool (default: all resident ones) that are not newer than the query; all others get 0. The row
    of an absent query, or of one that sees nothing, is 0. max_logits: take the maximum of the logits over a KV head's
    query heads first, which leaves G = 1. Raises MethodError when fewer queries are remembered than asked for.
    """
    queries, at = _newest(entries, window)
    among = entries.resident if among is None else among & entries.resident
    return _softmax(queries, at, entries.keys, _bias(entries), entries.positions, among, max_logits)


def mean_attention(entries: Entries, window: int, among: Tensor | None = None, group: str = "mean") -> Tensor:
    """[L, R, H, n] fp32: `probabilities` averaged over those of the W queries that exist, and over the query heads of
    a KV head (`group` ``mean``) or taken from the maximum of their logits (``max_logits``).

    Works in blocks of layers and sequences that hold about 2^26 probabilities. Raises MethodError as `probabilities`.
    """
    queries, at = _newest(entries, window)
    among = entries.resident if among is None else among & entries.resident
    existing = (at >= 0).sum(-1).clamp_min(1)
    out = torch.empty(entries.positions.shape, dtype=torch.float32, device=entries.keys.device)
    bias = _bias(entries)
    layers, rows = out.shape[:2]
    for block in _blocks(layers, rows, queries[0, 0, ..., 0].numel() * out.shape[-1] + entries.keys[0, 0].numel()):
        _, some = block
        rows_of = _softmax(
            queries[block],
            at[some],
            entries.keys[block],
            bias[block] if bias is not None else None,
            entries.positions[block],
            among[block],
            group == "max_logits",
        )
        out[block] = rows_of.sum(4).mean(3) / existing[None, some, None, None]
    return out


def pool(scores: Tensor, mask: Tensor, kernel: int, pooling: str) -> Tensor:
    """Pooling along the last axis, in the order of the entries under `mask` (same shape as `scores`); 0 elsewhere.

    pooling: ``max``, over those of the `kernel` neighbours that are under the mask; ``avg``, where neighbours that are
    not, or lie beyond the ends, count as 0. kernel: odd; 1 changes nothing. Raises ValueError for an even one.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel is {kernel}; it must be odd")
    flat = scores.masked_fill(~mask, -torch.inf if pooling == "max" else 0).reshape(-1, 1, scores.shape[-1])
    pooled = (max_pool1d if pooling == "max" else avg_pool1d)(flat, kernel, stride=1, padding=kernel // 2)
    return pooled.reshape(scores.shape).masked_fill(~mask, 0)


def _newest(entries: Entries, window: int) -> tuple[Tensor, Tensor]:
    """The newest `window` queries and their positions; other parts of a method may have asked for more."""
    queries, at = entries.queries, entries.query_positions
    if queries is None or at is None or at.shape[-1] < window:
        raise MethodError(f"attention scores need the newest {window} queries remembered (Needs.queries)")
    return queries[..., queries.shape[-2] - window :, :], at[:, at.shape[-1] - window :]


def _bias(entries: Entries) -> Tensor | None:
    """[L, R, H, n]: what the attention adds to the logits of an entry."""
    return entries.traits[entries.bias].expand(entries.positions.shape).float() if entries.bias else None


def _softmax(
    queries: Tensor, at: Tensor, keys: Tensor, bias: Tensor | None, positions: Tensor, among: Tensor, max_logits: bool
) -> Tensor:
    layers, rows, heads, n, dim = keys.shape
    grouped = queries.float().reshape(layers, rows, heads, -1, dim) * dim**-0.5
    logits = (grouped @ keys.float().transpose(-1, -2)).view(layers, rows, heads, -1, at.shape[-1], n)
    if bias is not None:
        logits = logits + bias[:, :, :, None, None]
    if max_logits:
        logits = logits.amax(3, keepdim=True)
    # An absent query stands at -1, before every entry.
    seen = among[:, :, :, None, None] & (positions[:, :, :, None, None] <= at[None, :, None, None, :, None])
    # What is hidden may hold NaN, and a row that sees nothing has no softmax: hence the mask before and after.
    return logits.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)


def _blocks(layers: int, rows: int, each: int) -> Iterator[tuple[slice, slice]]:
    """Slices over layers and rows, each of which holds about `_CHUNK_ELEMENTS` if one layer of one row has `each`."""
    wide = min(rows, max(1, _CHUNK_ELEMENTS // each))
    deep = max(1, _CHUNK_ELEMENTS // (each * wide))
    for layer in range(0, layers, deep):
        for row in range(0, rows, wide):
            yield slice(layer, layer + deep), slice(row, row + wide)
