"""Expected Attention: what a Gaussian of recent queries will attend to, times the values' length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_methods.presets.evicting import Evicting
from cask_methods.scorers.expected_attention import ExpectedAttentionScorer


@dataclass(frozen=True)
class ExpectedAttention(Evicting):
    """Keeps the entries that queries like the recent ones are expected to attend to over the next `horizon`
    positions (https://arxiv.org/abs/2510.00636). The remembered queries are charged to its cache."""

    summary: ClassVar[str] = "Expected attention of a Gaussian of recent queries"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.00636"
    deviations: ClassVar[tuple[str, ...]] = (
        "queries are remembered with their positions and the horizon starts at the next logical position; the "
        "published decoding code starts it at the length of its buffer",
        "all remembered queries count; the published code drops the first four states of its buffer as sinks",
        "the softmax runs over the competing entries: with a pinned prompt, over generated ones",
        "the prompt is pinned by default, which the published code does not do (set prompt to compete)",
    )

    sink: int = param(4, "First positions that every event keeps.", source="published code: n_sink 4", low=0)
    window: int = param(
        256,
        "Newest queries of every query head from which mean and covariance are taken; each costs as much cache as half "
        "an entry.",
        source="hidden states remembered by the published decoding code (and by AMS)",
        low=1,
    )
    horizon: int = param(
        512, "Coming positions over which the rotation is averaged.", source="published code: n_future_positions", low=1
    )
    epsilon: float = param(
        0.0,
        "Added to the attention before it is multiplied by the value's length; a large one keeps long values.",
        source="published code: 0 (AMS: 0.01)",
        low=0,
    )

    def scorer(self) -> ExpectedAttentionScorer:
        return ExpectedAttentionScorer(self.window, self.horizon, self.epsilon)
