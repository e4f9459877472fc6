"""Value magnitude: an entry can matter no more than its value is long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries
from cask_methods.standardise import standardise

FORMS = ("norm", "log", "standardised")


@dataclass(frozen=True)
class ValueNormScorer:
    """‖v_i‖, per layer and KV head: the value factor of Expected Attention (https://arxiv.org/abs/2510.00636) alone.

    form: ``norm``; ``log``, its natural logarithm, where a zero value counts as the smallest normal number; or
        ``standardised``, the z-score of the logarithm over the candidates.
    """

    name: ClassVar[str] = "value_norm"

    form: str = "norm"

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n], fp32; 0 where `candidates` is False."""
        values = entries.values.to(torch.promote_types(entries.values.dtype, torch.float32))
        norm = torch.linalg.vector_norm(values.masked_fill(~candidates.unsqueeze(-1), 0), dim=-1)
        if self.form == "norm":
            return norm
        log = norm.clamp_min(torch.finfo(norm.dtype).tiny).log().masked_fill(~candidates, 0)
        return log if self.form == "log" else standardise(log, candidates)
