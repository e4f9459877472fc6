"""StreamingLLM's re-indexing: what is kept moves up to consecutive rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Selection
from cask_methods.rotary import phases, turn


@dataclass(frozen=True)
class Reindex:
    """Keys are re-rotated so that the i-th resident entry stands at rotary position i; the next query then stands
    right behind the last one (https://arxiv.org/abs/2309.17453, §3.2). The logical positions beside them stay.

    Before an event the i-th entry is at rotary position i already, so every key turns by (new index − old index).
    Only for scorers that do not look at keys or queries: what they see is no longer at its logical position.
    """

    name: ClassVar[str] = "reindex"
    reindexed: ClassVar[bool] = True

    def represent(self, entries: Entries, selection: Selection) -> tuple[Entries, Mapping[str, Tensor]]:
        keep = selection.keep
        old = keep.new_ones(keep.shape).cumsum(-1) - 1
        new = keep.cumsum(-1) - 1
        keys = turn(entries.keys.float(), phases(new - old, entries.geometry))
        keys = keys.masked_fill(~keep.unsqueeze(-1), 0).to(entries.keys.dtype)
        return replace(entries, keys=keys), {}
