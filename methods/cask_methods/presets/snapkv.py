"""SnapKV while decoding: pooled attention of the newest queries, which are kept themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.attention import GROUPS, POOLINGS
from cask_methods.presets.evicting import Evicting
from cask_methods.scorers.snapkv import DOMAINS, SnapKVScorer

_DECODING = "the decoding baseline in R-KV's published code"


@dataclass(frozen=True)
class SnapKV(Evicting):
    """Keeps the newest `recent` entries and, of the others, those that the newest `window` queries attend to most,
    with their neighbours (https://arxiv.org/abs/2404.14469)."""

    summary: ClassVar[str] = "Pooled attention of a window of newest queries"
    paper: ClassVar[str] = "https://arxiv.org/abs/2404.14469"
    deviations: ClassVar[tuple[str, ...]] = (
        "the original compresses the prompt once, before decoding; this is the form that later work runs at every "
        "event while decoding",
        "the softmax runs over the history alone by default; the original's runs over the whole row (set domain to "
        "row)",
        "window 8 and max-pooling over 7; the published code's own defaults are windows of 32 and 64 and avg over 5",
        "query heads of a KV head decide together, by the mean of their probabilities before pooling; the original "
        "keeps entries per query head, and the decoding baseline takes the maximum of their logits (set group to "
        "max_logits)",
        "the prompt is pinned by default; in the original it competes (set prompt to compete)",
    )

    recent: int = param(8, "Newest positions that every event keeps, at least the window.", source=_DECODING, low=1)
    window: int = param(8, "Newest queries whose attention counts.", source=_DECODING, low=1)
    kernel: int = param(7, "Odd width of the pooling along the entries; 1 for none.", source=_DECODING, low=1)
    pooling: str = param("max", "max, or avg with zero padding.", source=_DECODING, choices=POOLINGS)
    domain: str = param(
        "history",
        "What the softmax runs over: the history (entries older than the window), or the whole row.",
        source=_DECODING,
        choices=DOMAINS,
    )
    group: str = param(
        "mean",
        "Over the query heads of a KV head: mean of the probabilities, or softmax of the maximum of the logits "
        "(max_logits).",
        source="ours, as in H2O and TOVA; R-KV's published baseline takes max_logits",
        choices=GROUPS,
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.kernel % 2 == 0:
            raise MethodError(f"{preset}: parameter kernel is {self.kernel}; it must be odd")
        if self.recent < self.window:
            raise MethodError(
                f"{preset}: parameter recent is {self.recent}; it must be at least the window, {self.window}, "
                "whose entries have no score"
            )

    def scorer(self) -> SnapKVScorer:
        return SnapKVScorer(self.window, self.kernel, self.pooling, self.domain, self.group)
