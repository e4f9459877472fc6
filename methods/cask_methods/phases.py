"""Phases of a chain of thought: where the text of a sequence says that a new step begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TEXTS = ("\n", "\n\n", "Therefore", " Therefore", "So", " So", "Hence", " Hence")
"""What begins a new phase (docs/DEFINITIONS.md §6)."""

Markers = tuple[tuple[int, ...], ...]


def markers(encode: Callable[[str], list[int]]) -> Markers:
    """The token sequences of `TEXTS`, each once, under a tokenizer `encode` (text → ids, no special tokens)."""
    return tuple(dict.fromkeys(ids for ids in (tuple(encode(text)) for text in TEXTS) if ids))


def phase_ids(tokens: Tensor, prompt_tokens: Tensor, marks: Markers) -> Tensor:
    """Phase of every logical position, [R, N] int64: at how many generated positions before it a marker ends.

    tokens: [R, N] int64 by logical position, -1 beyond a sequence's length. prompt_tokens: [R]; a marker counts only
    when all of it was generated. A position where several markers end counts once.
    """
    ends = torch.zeros_like(tokens, dtype=torch.bool)
    for mark in marks:
        count = tokens.shape[1] - len(mark) + 1
        if count < 1:
            continue
        here = torch.arange(count, device=tokens.device) >= prompt_tokens[:, None]
        for i, token in enumerate(mark):
            here = here & (tokens[:, i : i + count] == token)
        ends[:, len(mark) - 1 :] |= here
    return ends.cumsum(-1) - ends.long()
