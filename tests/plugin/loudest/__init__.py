"""A method in a package of its own: the example of docs/METHODS.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Needs
from cask_eval.engine.method import param
from cask_methods.attention import mean_attention
from cask_methods.presets.evicting import Evicting


@dataclass(frozen=True)
class Loudness:
    """How much the newest queries attend to an entry, times the norm of its value."""

    window: int
    power: float

    @property
    def needs(self) -> Needs:
        return Needs(queries=self.window)

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        attention = mean_attention(entries, self.window)
        size = entries.values.float().norm(dim=-1) ** self.power
        return (attention * size).masked_fill(~candidates, 0)


@dataclass(frozen=True)
class Loudest(Evicting):
    """Keeps what is attended to and says much."""

    summary: ClassVar[str] = "Recent attention times value norm"

    window: int = param(4, "Newest queries that vote.", source="an example", low=1)
    power: float = param(1.0, "Exponent of the norm.", source="an example", low=0)

    def scorer(self) -> Loudness:
        return Loudness(self.window, self.power)
