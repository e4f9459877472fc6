"""Events at the ends of reasoning steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cask_eval.errors import MethodError
from cask_eval.schedule import Schedule


@dataclass(frozen=True)
class AtBoundaries:
    """Fires at the first delimiter once b + earliest entries are resident, and at b + latest at the latest (R-KV's
    newline mode, https://arxiv.org/abs/2505.24133, generalised).

    delimiters: texts, separated by ``|``; those that are a single token of the model's vocabulary end a step.
    earliest = latest is the slack trigger.
    """

    name: ClassVar[str] = "at_boundaries"

    earliest: int
    latest: int
    delimiters: str

    def schedule(
        self, budget: int, prompt: str, encode: Callable[[str], list[int]] | None = None, **options
    ) -> Schedule:
        """Without `encode` the schedule knows no boundaries. Raises MethodError when no delimiter is one token."""
        ids: tuple[int, ...] = ()
        if encode is not None and self.earliest < self.latest:
            ids = self.boundaries(encode)
        return Schedule("boundary", budget, self.latest, prompt, earliest=self.earliest, boundaries=ids, **options)

    def boundaries(self, encode: Callable[[str], list[int]]) -> tuple[int, ...]:
        pieces = [encode(text) for text in self.delimiters.split("|") if text]
        ids = sorted({ids[0] for ids in pieces if len(ids) == 1})
        if not ids:
            raise MethodError(
                f"none of the delimiters {self.delimiters!r} is a single token of this model; give other ones"
            )
        return tuple(ids)
