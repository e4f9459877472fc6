"""The plain top-k, by a stable sort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine import kernels
from cask_eval.engine.contract import Entries, Selection


@dataclass(frozen=True)
class TopK:
    """Keeps the highest scores; equal scores go to the lower logical position (`torch.topk` promises no such thing)."""

    name: ClassVar[str] = "top_k"

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries | None = None) -> Selection:
        return Selection(highest(scores, candidates, quota))


def highest(scores: Tensor, candidates: Tensor, quota: Tensor) -> Tensor:
    """Mask [..., n] with the `quota` [...] highest-scored `candidates` a row; all lead with the same shape. Entries
    lie in ascending position, so a stable sort breaks ties as promised."""
    if kernels.use("top_k", scores):
        from cask_methods.kernels import top_k  # with Triton

        if top_k.takes(scores):
            return top_k.highest(scores, candidates, quota)
    # Adding 0 turns -0.0 into 0.0, which some sorts would tell apart.
    order = torch.sort(scores + 0.0, dim=-1, descending=True, stable=True).indices
    competing = candidates.gather(-1, order)
    chosen = competing & (competing.cumsum(-1) <= quota.unsqueeze(-1))
    return torch.zeros_like(candidates).scatter_(-1, order, chosen)
