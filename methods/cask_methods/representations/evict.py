"""What is not kept is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Selection


@dataclass(frozen=True)
class Evict:
    """Kept entries stay as they are, bit for bit."""

    name: ClassVar[str] = "evict"

    def represent(self, entries: Entries, selection: Selection) -> tuple[Entries, Mapping[str, Tensor]]:
        return entries, {}
