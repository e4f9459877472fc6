"""PyramidKV while decoding: SnapKV's scores with more room in shallow layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Method, param
from cask_eval.schedule import Schedule
from cask_methods.allocations.pyramid import Pyramid
from cask_methods.presets.snapkv import SnapKV


@dataclass(frozen=True)
class LayerBudgets(Method):
    """The parameter of PyramidKV's allocation, to be mixed into an evicting preset, whose `recent` is the window W:
    what every layer keeps anyway."""

    deviations: ClassVar[tuple[str, ...]] = (
        "layer budgets follow from the budget alone and sum to it exactly; published code derives them from the "
        "current length, and falls back to uniform ones, or others, where they do not fit",
        "a budget whose deepest layer would keep less than one entry beside the window is refused",
        "prompt entries count inside a layer's budget; a layer whose budget is less than it protects keeps just that, "
        "and the other layers pay alike",
        "a layer that has not yet gathered its budget keeps all it has, and the other layers share the rest alike",
    )

    beta: int = param(
        20,
        "The deepest layer's share, beside the window, is the average divided by this; the shallowest layer's makes up "
        "for it. 1 is uniform.",
        source="published code",
        low=1,
        null=1,
    )

    def allocation(self) -> Pyramid:
        return Pyramid(self.recent, self.beta)

    def admit(self, prompt_tokens: int, schedule: Schedule) -> None:
        super().admit(prompt_tokens, schedule)
        self.allocation().check(schedule.target(prompt_tokens))


@dataclass(frozen=True)
class PyramidKV(LayerBudgets, SnapKV):
    """SnapKV with layer budgets that fall linearly with depth (https://arxiv.org/abs/2406.02069)."""

    summary: ClassVar[str] = "SnapKV with more room in shallow layers"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.02069"
    reference: ClassVar[str | None] = "snapkv"
    deviations: ClassVar[tuple[str, ...]] = (*LayerBudgets.deviations, *SnapKV.deviations)
