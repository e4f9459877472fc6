"""H2O's accumulated attention (https://arxiv.org/abs/2306.14048)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Needs, Trait

TRAIT = "attention_sum"


@dataclass(frozen=True)
class H2OScorer:
    """All attention an entry has received while it was resident, summed over the queries of every read (the prompt's
    own included) and over a KV head's query heads.

    Kept as a trait of 4 bytes per entry, which starts at 0; reads before the entry existed or after others were
    evicted count as they were made. Every sequence has its own sums; the published code adds a batch's together.
    """

    name: ClassVar[str] = "h2o"
    needs: ClassVar[Needs] = Needs(traits={TRAIT: Trait()})

    def observe(self, layer: int, attention: Tensor, traits: Mapping[str, Tensor], positions: Tensor) -> None:
        """Adds [B, H, G, q, C] probabilities of the queries that exist."""
        absent = (positions < 0)[:, None, None, :, None]
        traits[TRAIT].add_(attention.masked_fill(absent, 0).sum((2, 3)))

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n] fp32; 0 where `candidates` is False."""
        return entries.traits[TRAIT].masked_fill(~candidates, 0)
