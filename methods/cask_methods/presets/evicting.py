"""What the evicting presets share: when an event happens, and which entries it must keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries
from cask_eval.engine.method import Method, param
from cask_eval.residency import PROMPTS, Schedule

_UPSTREAM = "default of the published TriAttention command line (divide_length 128, slack trigger)"


@dataclass(frozen=True)
class Scheduled(Method):
    """A length-driven schedule, and protection for the prompt and the first entries."""

    representation: ClassVar[str] = "evict"

    delta: int = param(128, "Steps between events.", source=_UPSTREAM, low=1)
    trigger: str = param(
        "slack",
        "slack: fire at target + delta; periodic: above target when the logical length is "
        "a multiple of delta; every_step: above target.",
        source=_UPSTREAM,
        choices=("slack", "periodic", "every_step"),
    )
    prompt: str = param(
        "pinned",
        "pinned: the prompt is kept inside the budget; outside: kept on top of it; "
        "compete: prompt entries compete like any other.",
        source="published TriAttention pins the prompt inside the budget",
        choices=PROMPTS,
    )
    sink: int = param(0, "First positions that every event keeps.", source="none in published TriAttention", low=0)

    def schedule(self, budget: int) -> Schedule:
        return Schedule(trigger=self.trigger, budget=budget, delta=self.delta, prompt=self.prompt)

    def protected(self, entries: Entries) -> Tensor:
        """[L, R, H, n] bool: the prompt unless it competes, and the sink."""
        first = entries.prompt_tokens if self.prompt != "compete" else entries.prompt_tokens * 0
        first = first.clamp_min(self.sink).view(1, -1, 1, 1)
        return (entries.positions >= 0) & (entries.positions < first)

    def protected_count(self, prompt_tokens: int) -> int:
        return max(prompt_tokens, self.sink) if self.prompt != "compete" else self.sink


@dataclass(frozen=True)
class Evicting(Scheduled):
    """`Scheduled` that may also protect the newest entries."""

    recent: int = param(
        0,
        "Newest positions that every event keeps.",
        source="none in published TriAttention's HF code (its vLLM plugin keeps 128)",
        low=0,
    )

    def protected(self, entries: Entries) -> Tensor:
        newest = entries.positions >= (entries.length - self.recent).view(1, -1, 1, 1)
        return super().protected(entries) | (newest & (entries.positions >= 0))

    def protected_count(self, prompt_tokens: int) -> int:
        return super().protected_count(prompt_tokens) + self.recent
