"""M6: TriAttention's scores less a static penalty on redundant keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.contract import Scorer
from cask_eval.engine.method import param
from cask_methods.presets.triattention import TriAttention
from cask_methods.scorers.key_redundancy import FORMS, KeyRedundancyScorer
from cask_methods.scorers.shifted import ShiftedScorer


@dataclass(frozen=True)
class TriRedundancy(TriAttention):
    """Top-k by s_i − λ·τ·D_i: s is exactly TriAttention's score, τ its deviation, and D_i how much key i resembles
    the others (R-KV, https://arxiv.org/abs/2505.24133), whatever else is kept. Beside α it tells whether
    conditioning on the kept set matters, or only the penalty."""

    summary: ClassVar[str] = "TriAttention with a static penalty on redundant keys"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.24133"
    reference: ClassVar[str | None] = "triattention"
    mechanism: ClassVar[str] = "M6"
    deviations: ClassVar[tuple[str, ...]] = (
        "a mechanism of our own design after R-KV's redundancy term, not a published method",
        "redundancy is standardised by default: R-KV's own, a softmax, strays from 1/n so little that no usual λ "
        "would move a decision (set form to share for it)",
        *TriAttention.deviations,
    )

    lambda_: float = param(
        0.5,
        "Strength of the penalty. Not comparable between settings of form.",
        source="ours: the same default as alpha's",
        low=0,
        null=0.0,
    )
    form: str = param(
        "standardised",
        "standardised: D is the z-score of R-KV's redundancy over the competing entries; share: R-KV's softmax itself.",
        source="ours; R-KV has the share",
        choices=FORMS,
    )

    def scorer(self) -> Scorer:
        return ShiftedScorer(super().scorer(), KeyRedundancyScorer(self.form), self.lambda_)
