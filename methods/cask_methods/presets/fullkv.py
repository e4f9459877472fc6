"""No compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Encode, Method
from cask_eval.schedule import Schedule
from cask_methods.allocations.uniform import Uniform
from cask_methods.representations.evict import Evict
from cask_methods.scorers.recency import RecencyScorer
from cask_methods.selectors.top_k import TopK


@dataclass(frozen=True)
class FullKV(Method):
    """The full cache: no event ever happens. The ceiling that compression is measured against."""

    summary: ClassVar[str] = "Full cache, never compressed"

    def schedule(self, budget: int, encode: Encode | None = None) -> Schedule:
        return Schedule(trigger="never", budget=budget, delta=1, prompt="compete")

    def scorer(self) -> RecencyScorer:
        """Never asked."""
        return RecencyScorer()

    def selector(self) -> TopK:
        """Never asked."""
        return TopK()

    def allocation(self) -> Uniform:
        """Never asked."""
        return Uniform()

    def representation(self) -> Evict:
        """Never asked."""
        return Evict()
