"""Events at the ends of reasoning steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import Encode
from cask_eval.errors import MethodError
from cask_eval.schedule import Schedule

_UNKNOWN = "\ue000"
"""A private character: a vocabulary of words reads it, and every word it lacks, as one token for the unknown."""


@dataclass(frozen=True)
class AtBoundaries:
    """Fires at the first delimiter once b + earliest entries are resident, and at b + latest at the latest (R-KV's
    newline mode, https://arxiv.org/abs/2505.24133, generalised). With earliest = latest it is the slack trigger.

    earliest: from 1 to `latest`, or 0 for `latest`. delimiters: texts, separated by ``|``; those that are one token of
    the model's vocabulary end a step.
    """

    name: ClassVar[str] = "at_boundaries"

    earliest: int
    latest: int
    delimiters: str

    def schedule(self, budget: int, prompt: str, encode: Encode | None = None, **options) -> Schedule:
        """Without `encode` the schedule knows no boundaries. Raises MethodError when no delimiter is one token,
        ValueError when earliest is greater than latest."""
        if self.earliest in (0, self.latest):
            return Schedule("slack", budget, self.latest, prompt, **options)
        ids = self.boundaries(encode) if encode else ()
        return Schedule("boundary", budget, self.latest, prompt, earliest=self.earliest, boundaries=ids, **options)

    def boundaries(self, encode: Encode) -> tuple[int, ...]:
        """Ids of the delimiters, each as it stands alone and as it follows a letter: some tokenizers put a space before
        a text's first word. Raises MethodError when none is one token."""
        letter, unknown = encode("a"), encode(_UNKNOWN)
        pieces = []
        for text in filter(None, self.delimiters.split("|")):
            after = encode("a" + text)
            pieces += [encode(text), after[len(letter) :] if after[: len(letter)] == letter else []]
        ids = sorted({piece[0] for piece in pieces if len(piece) == 1 and piece != unknown})
        if not ids:
            raise MethodError(
                f"none of the delimiters {self.delimiters!r} is a single token of this model; give other ones"
            )
        return tuple(ids)
