"""StreamingLLM: attention sinks and a sliding window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.contract import Representation
from cask_eval.engine.method import param
from cask_methods.presets.evicting import PROTECTING, Scheduled
from cask_methods.representations.evict import Evict
from cask_methods.representations.reindex import Reindex
from cask_methods.scorers.recency import RecencyScorer


@dataclass(frozen=True)
class Recency(Scheduled):
    """Keeps the first `sink` positions and the newest b − sink (https://arxiv.org/abs/2309.17453), or, where the prompt
    is protected, the prompt (and the sink, if that is longer) and the newest others.

    `RecencyPP` is the same with a pinned prompt, without sink and re-indexing.
    """

    summary: ClassVar[str] = "StreamingLLM: sinks and the newest entries"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.17453"
    deviations: ClassVar[tuple[str, ...]] = (
        "with reindex false, keys stay rotated at their logical positions; the original rotates unrotated keys to "
        "their slots in the cache at every step (set reindex to true)",
        "with reindex true, kept keys are turned and rounded at every event; the original keeps them unrotated. In "
        "bfloat16, with random keys and the slack trigger at delta 128, they are off after 50 events by 0.17 % on "
        "average and 0.2 % at worst for b = 64, which is one rounding, and by 0.26 % and 0.5 % for b = 512; that "
        "grows with b / delta, and fewer than 16 steps between events are refused in 16-bit types",
        "fires by the slack trigger every delta steps, as the other presets do; the original evicts at every step "
        "(set trigger to every_step)",
    )

    prompt: str = param(
        "compete",
        "compete: only the sinks outlive the window; pinned: the prompt is kept inside the "
        "budget; outside: kept on top of it.",
        source="the paper's window takes no notice of the prompt",
        choices=PROTECTING,
    )
    sink: int = param(4, "First positions that every event keeps.", source="the paper's four attention sinks", low=0)

    reindex: bool = param(
        False,
        "Whether what is kept moves up to consecutive rotary positions, and the next token with it.",
        source="true in the paper; false leaves logical positions, as all other methods here do",
    )

    def scorer(self) -> RecencyScorer:
        return RecencyScorer()

    def representation(self) -> Representation:
        return Reindex(self.schedule(1).delta) if self.reindex else Evict()
