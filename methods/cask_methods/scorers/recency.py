"""Recency: the newer an entry, the more it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries


@dataclass(frozen=True)
class RecencyScorer:
    """The logical position as the score: top-k keeps the newest. Exact in fp32 up to position 2^24."""

    name: ClassVar[str] = "recency"

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n] fp32; 0 where `candidates` is False."""
        return entries.positions.to(torch.float32).masked_fill(~candidates, 0)
