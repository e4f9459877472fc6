"""How full the caches of one trial are in the end, and from which token on they had been compressed. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from cask_eval.footprint import Footprint
from cask_eval.residency import happenings
from cask_eval.schedule import Schedule


def terminal(schedule: Schedule, prompt_tokens: int, outputs: Sequence[Sequence[int]]) -> int:
    """Entries per layer and KV head after the last step and its event, over all chains, whose token ids are `outputs`;
    the last id of each is not read. Raises ValueError when the schedule has another number of chains."""
    total = 0
    for part, ids in zip(schedule.split(), outputs, strict=True):
        steps = max(0, len(ids) - 1)
        events = happenings(part, prompt_tokens, steps, ids)
        total += prompt_tokens + steps - sum(before - done.resident for _, before, done in events)
    return total


def compressed_from(schedule: Schedule, footprint: Footprint, prompt_tokens: int, tokens: Sequence[int]) -> int:
    """Index of the first of the given `tokens` that one chain predicts from a compressed cache; their number when there
    is none. Token t is predicted by step t, so an event after step s is felt by token s + 1; a packed cache is felt by
    the first step that reads packed entries."""
    found = [step + 1 for step, *_ in happenings(schedule, prompt_tokens, len(tokens) - 1, tokens)][:1]
    if packing := footprint.packing:
        # Until the first event nothing but growth happens: step t reads prompt + t − 1 entries that may be packed.
        found.append(max(1, packing.residual - prompt_tokens + 1))
    return min([len(tokens), *found])
