"""Watching a model's queries just before the rotary embedding receives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cask_eval.engine.model import geometry
from cask_eval.errors import ModelError


@contextmanager
def watch_queries(model: PreTrainedModel, seen: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While open, every forward calls `seen(layer, queries [tokens, Hq, D])`.

    The hook sits on the last module before the rotation: the query norm where the family has one (Qwen3), else the
    projection. Taking q_proj alone would miss the norm. Raises ModelError when a layer has neither.
    """
    shape = geometry(model)
    handles = []
    try:
        for layer, block in enumerate(model.get_decoder().layers):
            module = getattr(block.self_attn, "q_norm", None) or getattr(block.self_attn, "q_proj", None)
            if module is None:
                raise ModelError(
                    f"layer {layer} of {shape.name} has neither q_norm nor q_proj; it cannot be calibrated"
                )

            def hook(_module, _inputs, output, layer=layer):
                seen(layer, output.reshape(-1, shape.query_heads, shape.head_dim))

            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def feed(model: PreTrainedModel, sequences: list[list[int]], seen: Callable[[int, Tensor], None]) -> None:
    """One plain forward per sequence of token ids, with its queries shown to `seen`."""
    with watch_queries(model, seen):
        for ids in sequences:
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1)
