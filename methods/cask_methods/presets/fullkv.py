"""No compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Method
from cask_eval.residency import Schedule
from cask_methods.scorers.recency import RecencyScorer
from cask_methods.selectors.top_k import TopK


@dataclass(frozen=True)
class FullKV(Method):
    """The full cache: no event ever happens. The ceiling that compression is measured against."""

    summary: ClassVar[str] = "Full cache, never compressed"
    representation: ClassVar[str] = "full"

    def schedule(self, budget: int) -> Schedule:
        return Schedule(trigger="never", budget=budget, delta=1, prompt="compete")

    def scorer(self) -> RecencyScorer:
        """Never asked."""
        return RecencyScorer()

    def selector(self) -> TopK:
        """Never asked."""
        return TopK()
