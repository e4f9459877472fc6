"""Recency under a pinned prompt: the plainest control there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_methods.presets.evicting import PROTECTING, Scheduled
from cask_methods.scorers.recency import RecencyScorer


@dataclass(frozen=True)
class RecencyPP(Scheduled):
    """Keeps the prompt and the newest generated entries."""

    summary: ClassVar[str] = "The prompt and the newest entries"

    prompt: str = param(
        "pinned",
        "pinned: the prompt is kept inside the budget; outside: on top of it; compete: it leaves the window like "
        "anything else.",
        source="the control's definition",
        choices=PROTECTING,
    )

    def scorer(self) -> RecencyScorer:
        return RecencyScorer()
