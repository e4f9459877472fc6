"""The modular trigger: compress whenever the sequence's length is a multiple of Δ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Encode
from cask_eval.schedule import Schedule


@dataclass(frozen=True)
class Periodic:
    """Fires at logical lengths that are multiples of Δ, when more than b entries are resident."""

    name: ClassVar[str] = "periodic"

    delta: int

    def schedule(self, budget: int, prompt: str, encode: Encode | None = None, **options) -> Schedule:
        return Schedule("periodic", budget, self.delta, prompt, **options)
