"""Which positions of one trial each event keeps, by replaying that trial alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from cask_eval.engine.contract import Compressed, Entries
from cask_eval.engine.method import Policy
from cask_eval.engine.replay import Given, replay
from cask_eval.schedule import Schedule


class _Watch:
    """Notes, at every event, how many layers and heads keep each logical position."""

    def __init__(self):
        self.shares: list[np.ndarray] = []

    def logits(self, requests: list, logits: Tensor) -> None:
        pass

    def event(self, requests: list, before: Entries, after: Compressed) -> None:
        positions, keep = after.entries.positions[:, 0], after.keep[:, 0]
        length = int(before.length[0])
        counts = positions[keep].flatten().bincount(minlength=length)
        self.shares.append((counts / (positions.shape[0] * positions.shape[1])).numpy(force=True))


def kept(decoder: Any, given: Given, policy: Policy, schedule: Schedule) -> tuple[np.ndarray, list[int]]:
    """(share of layers and heads that hold each position after each event [events, positions], NaN where there was none
    yet; the token after which each event came, 0 for one on the prompt). A merged entry stands where its position is.
    Of several chains it is the first. Raises what `replay` raises."""
    watch = _Watch()
    (found,) = replay(decoder, [given], policy, schedule.split()[0], slots=1, probe=watch)
    width = len(given.prompt_ids) + len(given.continuation)
    table = np.full((len(watch.shares), width), np.nan)
    for row, share in zip(table, watch.shares, strict=True):
        row[: len(share)] = share
    return table, [step for step, _, _ in found.residency.events]
