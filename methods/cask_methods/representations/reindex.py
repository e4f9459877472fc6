"""StreamingLLM's re-indexing: what is kept moves up to consecutive rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Host, Selection
from cask_eval.errors import MethodError
from cask_methods.rotary import phases, turn

LEAST_STEPS = 16
"""Fewest steps between events in 16-bit types. At b = 512 keys are then off by 1 % in bfloat16; at every step, by more
than 10 %."""


@dataclass(frozen=True)
class Reindex:
    """Keys are re-rotated so that the i-th resident entry stands at rotary position i; the next query then stands
    right behind the last one (https://arxiv.org/abs/2309.17453, §3.2). The logical positions beside them stay.

    Before an event the i-th entry is at rotary position i already, so every key turns by (new index − old index).
    Only for scorers that do not look at keys or queries: what they see is no longer at its logical position.

    steps: steps between events. Each rounds the keys anew, and turns that are small beside the rounding of a 16-bit
    type are lost alike every time, so that an entry drifts from its place in proportion to the events it lives through.
    """

    name: ClassVar[str] = "reindex"
    reindexed: ClassVar[bool] = True

    steps: int

    def bind(self, host: Host) -> Reindex:
        """Raises MethodError when events follow too closely for the precision of the model's keys."""
        dtype = host.geometry.dtype
        if dtype.itemsize < 4 and self.steps < LEAST_STEPS:
            raise MethodError(
                f"re-indexing rounds every kept key at every event, and errors add up: in {str(dtype).split('.')[-1]} "
                f"it needs at least {LEAST_STEPS} steps between events, not {self.steps}. Set trigger to slack or "
                f"periodic and delta to {LEAST_STEPS} or more, or reindex to false, or run the model in float32"
            )
        return self

    def represent(self, entries: Entries, selection: Selection) -> tuple[Entries, Mapping[str, Tensor]]:
        keep = selection.keep
        old = keep.new_ones(keep.shape).cumsum(-1) - 1
        new = keep.cumsum(-1) - 1
        keys = turn(entries.keys.float(), phases(new - old, entries.geometry))
        keys = keys.masked_fill(~keep.unsqueeze(-1), 0).to(entries.keys.dtype)
        return replace(entries, keys=keys), {}
