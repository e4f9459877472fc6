"""Value norm: keep the entries with the longest values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_methods.presets.evicting import Evicting
from cask_methods.scorers.value_norm import ValueNormScorer


@dataclass(frozen=True)
class ValueNorm(Evicting):
    """Keeps the entries with the longest values, whatever attends to them: a control for methods that weigh attention
    by value length, such as Expected Attention (https://arxiv.org/abs/2510.00636)."""

    summary: ClassVar[str] = "Longest values: a control for value-weighted scores"

    def scorer(self) -> ValueNormScorer:
        return ValueNormScorer()
