"""M3, over heads: TriAttention's scores with AdaKV's head budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.errors import MethodError
from cask_methods.presets.adakv import HeadBudgets
from cask_methods.presets.triattention import TriAttention


@dataclass(frozen=True)
class TriAdaKV(HeadBudgets, TriAttention):
    """TriAttention, whose heads share each layer's budget by where the highest scores are
    (https://arxiv.org/abs/2407.11550)."""

    summary: ClassVar[str] = "TriAttention with AdaKV head budgets"
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.11550"
    reference: ClassVar[str | None] = "triattention"
    mechanism: ClassVar[str] = "M3"
    deviations: ClassVar[tuple[str, ...]] = (*HeadBudgets.deviations, *TriAttention.deviations)

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.mode == "global":
            raise MethodError(
                f"{preset}: mode 'global' gives all heads one score, and budgets of heads need one for every head; "
                "use per_layer_head or per_head"
            )
