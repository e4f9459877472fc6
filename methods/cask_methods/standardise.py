"""z-scores over the entries that compete."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(scores: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation, fp64 [..., 1], of `scores` [..., n] along the last axis over `among`. Both are
    summed in fp64, so that padding does not move them."""
    count = among.sum(-1, keepdim=True).clamp_min(1)
    mean = scores.masked_fill(~among, 0).sum(-1, keepdim=True, dtype=torch.float64) / count
    deviation = (scores - mean).masked_fill(~among, 0)
    return mean, (deviation.square().sum(-1, keepdim=True) / count).sqrt()


def standardise(scores: Tensor, mask: Tensor, among: Tensor | None = None) -> Tensor:
    """z-scores along the last axis of the entries under `mask`, 0 elsewhere, in the dtype of `scores`. The moments are
    those of the entries `among` (default: `mask`); the deviation is at least 1e-6."""
    mean, sigma = moments(scores, mask if among is None else among)
    return ((scores - mean) / sigma.clamp_min(1e-6)).to(scores.dtype).masked_fill(~mask, 0)
