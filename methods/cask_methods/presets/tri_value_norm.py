"""M7: TriAttention's scores plus a bonus for long values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.contract import Scorer
from cask_eval.engine.method import param
from cask_methods.presets.triattention import TriAttention
from cask_methods.scorers.shifted import ShiftedScorer
from cask_methods.scorers.value_norm import ValueNormScorer


@dataclass(frozen=True)
class TriValueNorm(TriAttention):
    """Top-k by s_i + γ·τ·z(log ‖v_i‖): s is exactly TriAttention's score, τ its deviation, z standardises over the
    competing entries. The value factor of Expected Attention (https://arxiv.org/abs/2510.00636), brought to a score
    that has none."""

    summary: ClassVar[str] = "TriAttention with a bonus for long values"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.00636"
    reference: ClassVar[str | None] = "triattention"
    mechanism: ClassVar[str] = "M7"
    deviations: ClassVar[tuple[str, ...]] = (
        "a mechanism of our own design after Expected Attention's value factor, not a published method",
        *TriAttention.deviations,
    )

    gamma: float = param(
        0.5, "Strength of the bonus.", source="ours: the same default as alpha's lambda", low=0, null=0.0
    )

    def scorer(self) -> Scorer:
        return ShiftedScorer(super().scorer(), ValueNormScorer("standardised"), self.gamma)
