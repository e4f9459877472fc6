"""R-KV: attention of the newest queries less key redundancy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.attention import GROUPS
from cask_methods.presets.snapkv import SnapKV
from cask_methods.scorers.r_kv import RKVScorer


@dataclass(frozen=True)
class RKV(SnapKV):
    """Keeps the newest `recent` entries and, of the others, those of high λ·importance − (1 − λ)·redundancy, with
    SnapKV's score as importance (https://arxiv.org/abs/2505.24133)."""

    summary: ClassVar[str] = "SnapKV's score less the redundancy of keys"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.24133"
    deviations: ClassVar[tuple[str, ...]] = (
        "fires at budget + delta resident entries of each sequence; the published code counts 128 decoded tokens, in "
        "earlier versions over all samples together",
        "every sequence's redundancy comes from its own keys; earlier published versions took the first's for all",
        "importance is kept in fp32; the published code rounds it to the model's dtype before pooling",
        "the published retain_ratio is left out: it is without effect in the default direction 'last'",
        "the prompt is pinned by default; in the original it competes (set prompt to compete)",
    )

    group: str = param(
        "max_logits",
        "Over the query heads of a KV head: mean of the probabilities, or softmax of the maximum of the logits "
        "(max_logits).",
        source="R-KV's published code",
        choices=GROUPS,
    )
    lambda_: float = param(
        0.1,
        "Weight of the importance, 0 to 1; 1 is SnapKV with the same options.",
        source="the published README's 0.1; the code's own default is 0.07",
        low=0,
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.lambda_ > 1:
            raise MethodError(f"{preset}: parameter lambda is {self.lambda_}; it must be at most 1")

    def scorer(self) -> RKVScorer:
        return RKVScorer(self.lambda_, self.window, self.kernel, self.pooling, self.domain, self.group)
