"""z-scores over the entries that compete."""

from __future__ import annotations

import torch
from torch import Tensor


def standardise(scores: Tensor, mask: Tensor) -> Tensor:
    """z-scores along the last axis over `mask` (population deviation, at least 1e-6), in the dtype of `scores`; 0
    elsewhere, where `scores` must be 0. Moments are summed in fp64, so that padding does not move them."""
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    deviation = (scores - scores.sum(-1, keepdim=True, dtype=torch.float64) / count).masked_fill(~mask, 0)
    sigma = (deviation.square().sum(-1, keepdim=True) / count).sqrt().clamp_min(1e-6)
    return (deviation / sigma).to(scores.dtype)
