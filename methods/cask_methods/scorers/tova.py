"""TOVA's score: the newest query's attention (https://arxiv.org/abs/2401.06104)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Needs
from cask_methods.attention import mean_attention


@dataclass(frozen=True)
class TOVAScorer:
    """The newest query's attention probabilities, averaged over all query heads of a layer. The softmax runs over all
    resident entries, its own included. All KV heads of a layer keep the same entries."""

    name: ClassVar[str] = "tova"
    needs: ClassVar[Needs] = Needs(queries=1)

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, 1, n] fp32; 0 where `candidates` is False in some head."""
        mean = mean_attention(entries, 1).mean(2, keepdim=True)
        return mean.masked_fill(~candidates.all(2, keepdim=True), 0)
