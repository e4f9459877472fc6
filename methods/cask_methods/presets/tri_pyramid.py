"""M3, over layers: TriAttention's scores with PyramidKV's layer budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.errors import MethodError
from cask_methods.presets.pyramidkv import LayerBudgets
from cask_methods.presets.triattention import TriAttention


@dataclass(frozen=True)
class TriPyramid(LayerBudgets, TriAttention):
    """TriAttention with layer budgets that fall linearly with depth (https://arxiv.org/abs/2406.02069)."""

    summary: ClassVar[str] = "TriAttention with PyramidKV layer budgets"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.02069"
    reference: ClassVar[str | None] = "triattention"
    mechanism: ClassVar[str] = "M3"
    deviations: ClassVar[tuple[str, ...]] = (*LayerBudgets.deviations, *TriAttention.deviations)

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.mode != "per_layer_head":
            raise MethodError(
                f"{preset}: mode {self.mode!r} gives all layers one score, and budgets of layers need one for every "
                "layer; use per_layer_head"
            )
