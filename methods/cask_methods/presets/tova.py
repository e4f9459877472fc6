"""TOVA: what the newest query attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_methods.presets.evicting import Evicting
from cask_methods.scorers.tova import TOVAScorer


@dataclass(frozen=True)
class TOVA(Evicting):
    """Keeps, per layer, the entries with most attention from the newest query, averaged over all heads
    (https://arxiv.org/abs/2401.06104)."""

    summary: ClassVar[str] = "Attention of the newest query, one set per layer"
    paper: ClassVar[str] = "https://arxiv.org/abs/2401.06104"
    deviations: ClassVar[tuple[str, ...]] = (
        "fires by the slack trigger every delta steps, as the other presets do; the original evicts at every step "
        "(set trigger to every_step)",
        "the prompt is pinned by default; in the original every entry competes (set prompt to compete)",
    )

    def scorer(self) -> TOVAScorer:
        return TOVAScorer()
