"""Every layer and head keeps equally many entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """The target, less what is protected, for every layer and head."""

    name: ClassVar[str] = "uniform"

    def allocate(self, scores: Tensor, candidates: Tensor, protected: Tensor, target: Tensor) -> Tensor:
        """Quotas [L or 1, R, H or 1]."""
        return target[None, :, None] - protected.sum(-1)
