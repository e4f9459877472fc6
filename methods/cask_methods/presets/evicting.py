"""What most presets share: when an event happens, which entries it must keep, and the plain parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cask_eval.engine.contract import Allocation, Entries, Representation, Selector
from cask_eval.engine.method import Encode, Method, param
from cask_eval.schedule import PROMPTS, Schedule
from cask_methods.allocations.uniform import Uniform
from cask_methods.cadences.every_step import EveryStep
from cask_methods.cadences.periodic import Periodic
from cask_methods.cadences.slack import Slack
from cask_methods.representations.evict import Evict
from cask_methods.selectors.top_k import TopK

_UPSTREAM = "default of the published TriAttention command line (divide_length 128, slack trigger)"

PROTECTING = tuple(p for p in PROMPTS if p != "two_stage")


@dataclass(frozen=True)
class Scheduled(Method):
    """A length-driven cadence, and protection for the prompt and the first entries. Top-k, uniform budgets and plain
    eviction, unless a preset says otherwise."""

    delta: int = param(128, "Steps between events; trigger every_step takes no notice of it.", source=_UPSTREAM, low=1)
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
        choices=PROTECTING,
    )
    sink: int = param(0, "First positions that every event keeps.", source="none in published TriAttention", low=0)

    def cadence(self) -> Any:
        return {"slack": Slack(self.delta), "periodic": Periodic(self.delta), "every_step": EveryStep()}[self.trigger]

    def schedule(self, budget: int, encode: Encode | None = None) -> Schedule:
        return self.cadence().schedule(budget, self.prompt, encode)

    def selector(self) -> Selector:
        return TopK()

    def allocation(self) -> Allocation:
        return Uniform()

    def representation(self) -> Representation:
        return Evict()

    def protected(self, entries: Entries, target: Tensor) -> Tensor:
        """[L, R, H, n] bool: the prompt unless it competes, and the sink."""
        first = entries.prompt_tokens if self.prompt != "compete" else entries.prompt_tokens * 0
        first = first.clamp_min(self.sink).view(1, -1, 1, 1)
        return entries.resident & (entries.positions < first)

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

    def protected(self, entries: Entries, target: Tensor) -> Tensor:
        newest = entries.positions >= (entries.length - self.recent).view(1, -1, 1, 1)
        return super().protected(entries, target) | (newest & entries.resident)

    def protected_count(self, prompt_tokens: int) -> int:
        return super().protected_count(prompt_tokens) + self.recent
