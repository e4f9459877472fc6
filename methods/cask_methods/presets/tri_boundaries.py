"""M4: TriAttention whose events wait for the end of a reasoning step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.cadences.at_boundaries import AtBoundaries
from cask_methods.presets.triattention import TriAttention


@dataclass(frozen=True)
class TriBoundaries(TriAttention):
    """TriAttention that compresses at the first step delimiter beyond `earliest`, and at `delta` at the latest (R-KV's
    newline mode, https://arxiv.org/abs/2505.24133, generalised)."""

    summary: ClassVar[str] = "TriAttention with events at the ends of reasoning steps"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.24133"
    reference: ClassVar[str | None] = "triattention"
    mechanism: ClassVar[str] = "M4"
    deviations: ClassVar[tuple[str, ...]] = (
        "R-KV's newline mode compresses at every newline beyond the budget; here an earliest and a latest step bound "
        "the wait",
        "a delimiter that the tokenizer does not hold as one token is ignored",
        *TriAttention.deviations,
    )

    trigger: str = param(
        "slack",
        "slack: an event that met no delimiter is forced at target + delta.",
        source="TriAttention's default",
        choices=("slack",),
    )
    earliest: int = param(
        64,
        "Steps after an event before a delimiter may fire the next, at most delta; 0 is delta, where events are forced "
        "anyway.",
        source="ours: half of delta",
        low=0,
        null=0,
    )
    delimiters: str = param(
        "\n|\n\n|.\n|.\n\n",
        "Texts that end a step, separated by |.",
        source="R-KV's newlines, and those that close a sentence",
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.earliest > self.delta:
            raise MethodError(
                f"{preset}: parameter earliest is {self.earliest}; it must be at most delta, which is {self.delta}. "
                "Lower it, or set it to 0, which is delta, so that no delimiter fires an event"
            )

    def cadence(self) -> AtBoundaries:
        return AtBoundaries(self.earliest, self.delta, self.delimiters)
