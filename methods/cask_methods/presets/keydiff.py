"""KeyDiff: keys that point elsewhere than most, and a plain top-k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_methods.presets.evicting import Evicting
from cask_methods.scorers.keydiff import KeyDiffScorer


@dataclass(frozen=True)
class KeyDiff(Evicting):
    """Keeps the keys that are least similar to the mean key (https://arxiv.org/abs/2504.15364). Keys only."""

    summary: ClassVar[str] = "Keys unlike the mean key"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.15364"
    deviations: ClassVar[tuple[str, ...]] = (
        "applied while decoding, to what is resident at an event; the original compresses a prompt block by block",
        "first and newest positions are protected, and the prompt is pinned by default; the original protects none "
        "(set sink and recent to 0, prompt to compete)",
    )

    sink: int = param(
        4, "First positions that every event keeps.", source="ours: the rule takes no notice of them", low=0
    )
    recent: int = param(
        8, "Newest positions that every event keeps.", source="ours: the rule takes no notice of them", low=0
    )

    def scorer(self) -> KeyDiffScorer:
        return KeyDiffScorer()
