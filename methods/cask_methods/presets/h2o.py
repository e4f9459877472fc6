"""H2O: heavy hitters by accumulated attention, and the newest entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries
from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.presets.evicting import Scheduled
from cask_methods.scorers.h2o import H2OScorer


@dataclass(frozen=True)
class H2O(Scheduled):
    """Keeps the newest entries and those that have received most attention so far (https://arxiv.org/abs/2306.14048).

    The newest get `recent_share` of what an event leaves beside the prompt and the sink, rounded down. Reads
    attention at every step, and holds 4 bytes per entry.
    """

    summary: ClassVar[str] = "Heavy hitters by accumulated attention, and the newest entries"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.14048"
    deviations: ClassVar[tuple[str, ...]] = (
        "fires by the slack trigger every delta steps, as the other presets do; the original evicts at every step "
        "(set trigger to every_step)",
        "the prompt is pinned by default, and recent_share divides what it leaves; in the original prompt entries "
        "compete and half of the whole budget goes to the newest (set prompt to compete)",
        "probabilities are summed over the query heads of a KV head, which decides for all of them; the original "
        "has one query head per KV head",
        "every sequence has its own sums; the published code adds up those of a batch",
        "keys stay rotated at their logical positions, as in one of the published variants",
    )

    recent_share: float = param(
        0.5,
        "Share, 0 to 1, of the budget beside prompt and sink that goes to the newest positions.",
        source="the paper's even split between heavy hitters and recent tokens",
        low=0,
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.recent_share > 1:
            raise MethodError(f"{preset}: parameter recent_share is {self.recent_share}; it must be at most 1")

    def scorer(self) -> H2OScorer:
        return H2OScorer()

    def protected(self, entries: Entries, target: Tensor) -> Tensor:
        """The prompt unless it competes, the sink, and the newest entries. The last fit what the others leave of the
        target, so that `protected_count`, which knows no target, speaks of the others alone."""
        held = super().protected(entries, target)
        left = (target - held.sum(-1).amax((0, 2))).clamp_min(0)
        # A share such as 0.29 of 100 must not fall to 28 by rounding.
        recent = (left.double() * self.recent_share + 1e-9).floor().long()
        return held | (entries.resident & (entries.positions >= (entries.length - recent).view(1, -1, 1, 1)))
