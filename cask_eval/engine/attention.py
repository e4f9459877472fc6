"""Grouped-query attention over cache slots, registered with transformers under its own name.

A registered name without a mask function makes transformers pass no mask, so the slots themselves say which
entries exist, per sequence, layer and KV head. Query heads of one KV head are packed along the query axis: keys
and values are never repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cask_eval.engine import kernels

NAME = "cask_slots"


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    slots=None,
    **_,
) -> tuple[Tensor, None]:
    """query [B, Hq, q, D], key and value [B, H, C, D] → ([B, q, Hq, D], None).

    slots: where the keys came from, a SlotCache or a CaptureCache; it sees the queries, and `slots.mask(layer)`
    [B or 1, H or 1, q, C] says which entries each query sees. Where that is None, and without slots: causal.
    """
    batch, heads, queries, dim = query.shape
    mask = None
    if slots is not None:
        slots.see(module.layer_idx, query, key, scaling)
        mask = slots.mask(module.layer_idx)
    if mask is None:
        out = scaled_dot_product_attention(query, key, value, scale=scaling, is_causal=queries > 1, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None
    if queries == 1 and kernels.use("attention", query):
        from cask_eval.engine.kernels import attention  # with Triton

        prefix = slots.prefix(module.layer_idx)
        if prefix is not None and attention.takes(query, key, value):
            bias = None if mask.dtype == torch.bool else mask
            return attention.attend(query, key, value, *prefix, bias, scaling), None
    if queries == 1:
        packed = query.view(batch, key.shape[1], heads // key.shape[1], dim)
        out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
        return out.reshape(batch, 1, heads, dim), None
    groups = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], groups * queries, dim)
    mask = mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
    out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    return out.view(batch, heads, queries, dim).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, slot_attention)
