"""AdaKV while decoding: SnapKV's scores with head budgets from pooled scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Method, param
from cask_eval.errors import MethodError
from cask_methods.allocations.adakv import VARIANTS
from cask_methods.allocations.adakv import AdaKV as HeadAllocation
from cask_methods.presets.snapkv import SnapKV


@dataclass(frozen=True)
class HeadBudgets(Method):
    """The parameters of AdaKV's allocation, for presets to mix in."""

    deviations: ClassVar[tuple[str, ...]] = (
        "head budgets are rounded by largest remainder and sum to the layer's budget exactly; the published rounding "
        "need not",
        "scores are pooled over the entries that compete; what is protected counts against each head's own share",
    )

    floor: float = param(
        0.2,
        "Part of the budget that is shared evenly.",
        source="published command line; the published function defaults to 0.5",
        low=0,
        null=1.0,
    )
    variant: str = param(
        "paper",
        "paper: floor and pooled counts are mixed; kvpress: each head's best entries up to the floor are safe, and the "
        "rest goes to the highest scores of the layer.",
        source="the paper's algorithm",
        choices=VARIANTS,
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.floor > 1:
            raise MethodError(f"{preset}: parameter floor is {self.floor}; it must be at most 1")

    def allocation(self) -> HeadAllocation:
        return HeadAllocation(self.floor, self.variant)


@dataclass(frozen=True)
class AdaKV(HeadBudgets, SnapKV):
    """SnapKV, whose heads share each layer's budget by where the highest scores are
    (https://arxiv.org/abs/2407.11550)."""

    summary: ClassVar[str] = "SnapKV with head budgets from pooled scores"
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.11550"
    reference: ClassVar[str | None] = "snapkv"
    deviations: ClassVar[tuple[str, ...]] = (
        *HeadBudgets.deviations,
        "the published window is 32 queries; here it is that of SnapKV while decoding",
        *SnapKV.deviations,
    )
