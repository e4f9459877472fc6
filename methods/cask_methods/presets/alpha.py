"""α: TriAttention's scores, selected with a penalty on redundant values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_methods.presets.triattention import TriAttention
from cask_methods.selectors.diverse import PENALTIES, SPACES, TAUS, Diverse


@dataclass(frozen=True)
class Alpha(TriAttention):
    """Greedy selection of s_i − λ·τ·max cos(v_i, kept), s being exactly TriAttention's score
    (https://arxiv.org/abs/2605.14292)."""

    summary: ClassVar[str] = "TriAttention with a value-redundancy penalty at selection"
    paper: ClassVar[str] = "https://arxiv.org/abs/2605.14292"
    reference: ClassVar[str | None] = "triattention"
    deviations: ClassVar[tuple[str, ...]] = (
        "the paper's exact penalty was not public when this was written: this is the rule its abstract describes, "
        "and its λ need not carry over (whether it multiplied raw or standardised scores is unknown)",
        *TriAttention.deviations,
    )

    lambda_: float = param(
        0.5,
        "Strength of the penalty. Not comparable between settings of tau.",
        source="the value the paper's abstract reports, chosen on its development split",
        low=0,
        null=0.0,
    )
    tau: str = param(
        "std",
        "Unit of the penalty: the scores' population deviation over the competing entries, 1, or their range.",
        source="ours: makes λ free of the scores' scale",
        choices=TAUS,
    )
    space: str = param(
        "values",
        "Where resemblance is measured: values, values less their mean, or cached keys.",
        source="the paper's abstract: value space",
        choices=SPACES,
    )

    penalty: str = param(
        "max",
        "How resemblance to several kept entries adds up: the max, the mean or the sum of their positive cosines.",
        source="ours: with max, the penalty is bounded and does not grow with the budget",
        choices=PENALTIES,
    )
    seed_protected: bool = param(
        False,
        "Whether entries that are kept anyway (prompt, sink, newest) count as kept from the start.",
        source="ours: otherwise everything that resembles the prompt is penalised",
    )

    def selector(self) -> Diverse:
        return Diverse(self.lambda_, self.tau, self.space, self.penalty, self.seed_protected)
