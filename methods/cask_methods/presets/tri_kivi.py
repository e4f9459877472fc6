"""M1: TriAttention on quantised keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_methods.presets.kivi import Quantised
from cask_methods.presets.triattention import TriAttention


@dataclass(frozen=True)
class TriKivi(Quantised, TriAttention):
    """TriAttention whose survivors are stored in a few bits (KIVI, https://arxiv.org/abs/2402.02750): the same memory
    holds more entries. Scores are computed from the keys as stored."""

    summary: ClassVar[str] = "TriAttention on a quantised cache"
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.02750"
    reference: ClassVar[str | None] = "triattention"
    mechanism: ClassVar[str] = "M1"
    deviations: ClassVar[tuple[str, ...]] = (
        "an event packs the survivors anew: a key's group runs over neighbouring entries, and eviction gives it other "
        "neighbours, so that keys are rounded once more at every event",
        *Quantised.deviations,
        *TriAttention.deviations,
    )
