"""M2: TriAttention whose evicted entries are merged into what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.contract import Representation
from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.presets.triattention import TriAttention
from cask_methods.representations.merge_on_evict import MergeOnEvict


@dataclass(frozen=True)
class TriMerge(TriAttention):
    """Exactly TriAttention's choice of entries; what it evicts is averaged, by value, into the nearest kept entry."""

    summary: ClassVar[str] = "TriAttention, merging what it evicts into the nearest kept values"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.13035"
    reference: ClassVar[str | None] = "triattention"
    mechanism: ClassVar[str] = "M2"
    deviations: ClassVar[tuple[str, ...]] = (
        "merging on eviction as such, not one paper's system: D2O (linked) and CaM weigh by attention or similarity, "
        "here an entry weighs as many tokens as it has taken in, and keys never change",
        *TriAttention.deviations,
    )

    fraction: float = param(
        1.0,
        "Share of the evicted entries that may be merged, those with the highest cosine first.",
        source="ours",
        low=0,
        null=0.0,
    )
    threshold: float = param(
        0.8,
        "Least cosine between the cached keys of an evicted entry and of its nearest kept one.",
        source="ours, a starting value to tune",
        low=-1,
    )
    log_mass: bool = param(
        False,
        "Whether the logarithm of an entry's weight is added to its attention logits.",
        source="ours: off, as in the published merging methods",
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        for name, value in (("fraction", self.fraction), ("threshold", self.threshold)):
            if value > 1:
                raise MethodError(f"{preset}: parameter {name} is {value!r}; it must be at most 1")

    def representation(self) -> Representation:
        return MergeOnEvict(self.threshold, self.fraction, self.log_mass)
