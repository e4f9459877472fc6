"""Random eviction under a pinned prompt: the null that every evictor must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_methods.presets.evicting import Evicting
from cask_methods.scorers.random import RandomScorer


@dataclass(frozen=True)
class RandomPP(Evicting):
    """Keeps a uniformly random set per layer and KV head, under a pinned prompt (https://arxiv.org/abs/2609.03430).

    The draw is counter-based, keyed by (trial seed, layer, head, event, position): a trial evicts the same entries
    in any batch.
    """

    summary: ClassVar[str] = "Uniformly random eviction under a pinned prompt"
    paper: ClassVar[str] = "https://arxiv.org/abs/2609.03430"
    exchangeable: ClassVar[bool] = False  # the draw is keyed by the head's number
    deviations: ClassVar[tuple[str, ...]] = (
        "built from the abstract's description; the paper's own code was not at hand",
    )

    sampling: str = param(
        "thinning",
        "thinning: a fresh draw at every event; reservoir: one draw per position, a "
        "uniform sample of the whole history.",
        source="methods differ; thinning is memoryless",
        choices=("thinning", "reservoir"),
    )

    def scorer(self) -> RandomScorer:
        return RandomScorer(self.sampling)
