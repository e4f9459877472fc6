"""SnapKV's score, in the form used while decoding: pooled attention of the newest queries
(https://arxiv.org/abs/2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Needs
from cask_methods.attention import history, mean_attention, pool

DOMAINS = ("history", "row")


@dataclass(frozen=True)
class SnapKVScorer:
    """Attention probabilities of the newest `window` queries, averaged over them and over the query heads of a KV
    head, then pooled along the history, that is the entries older than the window. The window itself scores 0: a
    preset protects it.

    window: W. kernel: odd width of the pooling, 1 for none. pooling: ``max`` or ``avg`` (zero-padded).
    domain: the softmax runs over the ``history``, or over the whole ``row``, of which the history is then taken.
    group: ``mean`` of the probabilities over a KV head's query heads, or ``max_logits``: the softmax of the maximum
        of their logits.
    """

    name: ClassVar[str] = "snapkv"

    window: int = 8
    kernel: int = 7
    pooling: str = "max"
    domain: str = "history"
    group: str = "mean"

    @property
    def needs(self) -> Needs:
        return Needs(queries=self.window)

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n] fp32; 0 where `candidates` is False and in the window."""
        past = history(entries, self.window)
        among = past if self.domain == "history" else entries.resident
        mean = mean_attention(entries, self.window, among, self.group)
        return pool(mean, past, self.kernel, self.pooling).masked_fill(~candidates, 0)
