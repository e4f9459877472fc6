"""R-KV's score: importance less redundancy (https://arxiv.org/abs/2505.24133)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Needs
from cask_methods.redundancy import redundancy
from cask_methods.scorers.snapkv import SnapKVScorer


@dataclass(frozen=True)
class RKVScorer:
    """Z = λ·I − (1 − λ)·D, with I SnapKV's score and D the key redundancy, a softmax over all resident entries.

    lambda_: λ in [0, 1]; 1 is SnapKV. Not a clean weight: D strays little from 1/n, I much.
    window, kernel, pooling, domain, group: as in `SnapKVScorer`.
    """

    name: ClassVar[str] = "r_kv"

    lambda_: float = 0.1
    window: int = 8
    kernel: int = 7
    pooling: str = "max"
    domain: str = "history"
    group: str = "max_logits"

    @property
    def importance(self) -> SnapKVScorer:
        return SnapKVScorer(self.window, self.kernel, self.pooling, self.domain, self.group)

    @property
    def needs(self) -> Needs:
        return self.importance.needs

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n] fp32; 0 where `candidates` is False."""
        importance = self.importance.score(entries, candidates)
        if self.lambda_ == 1:
            return importance
        return self.lambda_ * importance - (1 - self.lambda_) * redundancy(entries, candidates)
