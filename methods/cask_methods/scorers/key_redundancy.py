"""Key redundancy as a score: the less an entry resembles the others, the more it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries
from cask_methods.redundancy import redundancy
from cask_methods.standardise import standardise

FORMS = ("standardised", "share")


@dataclass(frozen=True)
class KeyRedundancyScorer:
    """−D_i, with D the redundancy of R-KV (https://arxiv.org/abs/2505.24133) per layer and KV head. It is static: it
    takes no notice of what else is kept.

    form: ``share``, D as it is, a softmax that strays little from 1/n; ``standardised``, its z-score over the
        candidates, so that it can be weighed.
    """

    name: ClassVar[str] = "key_redundancy"

    form: str = "standardised"

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n] fp32; 0 where `candidates` is False."""
        worth = -redundancy(entries, candidates)
        return standardise(worth, candidates) if self.form == "standardised" else worth
