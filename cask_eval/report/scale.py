"""In what an endpoint is printed: shares in percent and their differences in points, losses and divergences in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cask_eval.fidelity import AFTER, ENDPOINTS
from cask_eval.report import format as fmt

_NAMES = {
    "accuracy": "accuracy",
    "top1": "share of given tokens that are the most probable",
    "top5": "share of given tokens that are among the five most probable",
    "nll": "mean negative log-probability of the given tokens",
    "kl": "mean divergence from the full cache's prediction",
}


@dataclass(frozen=True)
class Scale:
    """factor: what numbers are multiplied by. score: how a dev score is printed, which is an accuracy, or for other
    endpoints a mean improvement."""

    endpoint: str
    name: str
    unit: str
    short: str
    factor: int

    @property
    def counted(self) -> bool:
        """Whether trials are right or wrong."""
        return self.endpoint == "accuracy"

    @property
    def direction(self) -> str:
        """What a difference is, in words."""
        if self.counted:
            return "Candidate minus baseline, in percentage points of accuracy"
        more = ENDPOINTS[self.endpoint.removesuffix(AFTER)]
        less = "" if more else ": baseline minus candidate, because less is better"
        units = {"points": "percentage points"}.get(self.unit, self.unit)
        return f"Improvement of the candidate over the baseline in {self.endpoint} ({self.name}), in {units}{less}"

    @property
    def scored(self) -> str:
        """What a dev score is."""
        return "Accuracy" if self.counted else f"Mean improvement in {self.endpoint} ({self.unit})"

    @property
    def axis(self) -> str:
        if self.counted:
            return "candidate minus baseline, percentage points"
        return f"improvement over the baseline in {self.endpoint}, {self.unit}"

    def difference(self, text: str) -> str:
        """Signed; a dash for the empty text."""
        if not text:
            return fmt.DASH
        return fmt.points(text) if self.factor == 100 else fmt.signed(text, 1, 4)

    def spread(self, text: str) -> str:
        return self.difference(text).lstrip("+")

    def value(self, text: str) -> str:
        """A value of the endpoint; a dash for the empty text."""
        if not text:
            return fmt.DASH
        return fmt.percent(text) if self.factor == 100 else fmt.fixed(fmt.value(text), 4)

    @property
    def score(self) -> Callable[[str], str]:
        return self.value if self.counted else self.difference


def scale_of(endpoint: str) -> Scale:
    base, after = endpoint.removesuffix(AFTER), endpoint.endswith(AFTER)
    name = _NAMES[base] + (", of those predicted from a compressed cache" if after else "")
    return Scale(endpoint, name, *(("nats", "nats", 1) if base in ("nll", "kl") else ("points", "pp", 100)))


def columns(endpoint: str) -> tuple[str, ...]:
    """The endpoints that are shown of every arm, the registered one first; empty for accuracy."""
    return () if endpoint == "accuracy" else tuple(dict.fromkeys([endpoint, *ENDPOINTS]))
