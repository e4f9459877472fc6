"""The slack trigger: let the cache grow by Δ entries, then compress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Encode
from cask_eval.schedule import Schedule


@dataclass(frozen=True)
class Slack:
    """Fires when b + Δ entries are resident."""

    name: ClassVar[str] = "slack"

    delta: int

    def schedule(self, budget: int, prompt: str, encode: Encode | None = None, **options) -> Schedule:
        return Schedule("slack", budget, self.delta, prompt, **options)
