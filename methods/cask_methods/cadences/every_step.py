"""An event at every step beyond the budget, as in streaming caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Encode
from cask_eval.schedule import Schedule


@dataclass(frozen=True)
class EveryStep:
    """Fires whenever more than b entries are resident."""

    name: ClassVar[str] = "every_step"

    def schedule(self, budget: int, prompt: str, encode: Encode | None = None, **options) -> Schedule:
        return Schedule("every_step", budget, 1, prompt, **options)
