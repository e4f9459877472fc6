"""KeyDiff: keys that point elsewhere than most are worth more (https://arxiv.org/abs/2504.15364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries


@dataclass(frozen=True)
class KeyDiffScorer:
    """s_i = −cos(k_i, mean over j of k_j / ‖k_j‖), per layer and KV head, with keys as cached (rotated).

    The mean runs over all resident entries, protected ones included. A zero key scores 0. Values are never used.
    """

    name: ClassVar[str] = "keydiff"

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n] in [−1, 1]; 0 where `candidates` is False."""
        resident = entries.resident.unsqueeze(-1)
        keys = entries.keys.to(torch.promote_types(entries.keys.dtype, torch.float32)).masked_fill(~resident, 0)
        unit = torch.nn.functional.normalize(keys, dim=-1)
        # The mean's length does not matter. Summed in fp64, padding does not move it.
        anchor = torch.nn.functional.normalize(unit.sum(-2, dtype=torch.float64), dim=-1).to(unit.dtype)
        likeness = (unit @ anchor.unsqueeze(-1)).squeeze(-1)
        return (-likeness).masked_fill(~candidates, 0)
