"""One score shifted by another, in units of the first one's spread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cask_eval.engine.contract import Entries, Host, Needs, Scorer, bound, needs_of
from cask_eval.errors import MethodError
from cask_methods.selectors.diverse import spread


@dataclass(frozen=True)
class ShiftedScorer:
    """s_i + weight·τ·signal_i, with τ the population deviation of the base's scores s over the candidates.

    Weight 0 is the base, bit for bit. Where the base decides for several layers or heads at once, the signal is
    averaged over them. τ is 0 where all scores are equal: then there is no scale to shift them on, and the signal has
    no say.

    base, signal: scorers; neither may be an `Observer`, which would have to be told of every read.
    """

    base: Scorer
    signal: Scorer
    weight: float

    def __post_init__(self):
        for part in (self.base, self.signal):
            if hasattr(part, "observe"):
                raise MethodError(f"{_name(part)} follows every attention read; a shifted score cannot pass that on")

    @property
    def name(self) -> str:
        return f"{_name(self.base)} + {_name(self.signal)}"

    @property
    def needs(self) -> Needs:
        return needs_of(self.base, self.signal)

    @property
    def calibrated(self) -> bool:
        return any(getattr(part, "calibrated", False) for part in (self.base, self.signal))

    def bind(self, host: Host) -> ShiftedScorer:
        """Both parts bound to a model. Raises MethodError when one cannot work there."""
        return replace(self, base=bound(self.base, host), signal=bound(self.signal, host))

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores of the shape of the base's; 0 where `candidates` is False."""
        scores = self.base.score(entries, candidates)
        if self.weight == 0:
            return scores
        signal = self.signal.score(entries, candidates)
        for axis in (0, 2):
            if scores.shape[axis] == 1:
                signal, candidates = signal.mean(axis, keepdim=True), candidates.all(axis, keepdim=True)
        shift = self.weight * spread(scores, candidates, "std") * signal
        return (scores + shift).masked_fill(~candidates, 0)


def _name(part: Any) -> str:
    return getattr(part, "name", type(part).__name__)
