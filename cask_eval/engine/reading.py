"""Prompts on their way into slots: several at once, a chunk of each at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cask_eval.engine.contract import Geometry
from cask_eval.engine.slots import CaptureCache, SlotCache

# Tokens of prompts that are read together, padding included: their keys and values lie beside the slots for that long.
READ_TOKENS = 1 << 14

# Tokens of a prompt in one forward. The same for every prompt whatever it is read with, so that its last digits do not
# depend on the company.
CHUNK = 512


class Reading:
    """A wave of requests, longest prompt first, whose prompts are read by `step` until nothing is `left`. Then
    `capture` holds what they leave behind, and `logits` [rows, V] follow their last tokens. A prompt that has ended
    takes no part in later chunks. places: what was computed, padding included. ids: [rows, longest] int64."""

    def __init__(self, model: PreTrainedModel, geometry: Geometry, wave: list[Any], cache: SlotCache):
        self.model, self.wave, self.lengths = model, wave, [len(r.prompt_ids) for r in wave]
        self.start, self.places, longest = 0, 0, self.lengths[0]
        # What follows a shorter prompt is invisible to it (causal) and never cached.
        padded = [[*r.prompt_ids, *([0] * (longest - n))] for r, n in zip(wave, self.lengths)]
        self.ids = torch.tensor(padded, device=model.device)
        prompt = torch.tensor(self.lengths, device=model.device)
        self.capture = CaptureCache(geometry, prompt, longest, cache.needs, cache.observers)
        self.logits: Tensor | None = None

    @property
    def left(self) -> int:
        """Tokens of the longest prompt that are still to be read."""
        return self.lengths[0] - self.start

    def step(self) -> None:
        """Read the next chunk."""
        start, stop = self.start, min(self.start + CHUNK, self.lengths[0])
        rows = sum(n > start for n in self.lengths)
        self.capture.begin(rows, start, stop)
        ends = [(row, n - 1 - start) for row, n in enumerate(self.lengths[:rows]) if n <= stop]
        columns = sorted({column for _, column in ends})
        logits = self.model(
            input_ids=self.ids[:rows, start:stop],
            position_ids=torch.arange(start, stop, device=self.ids.device).expand(rows, -1),
            past_key_values=self.capture.layers_view,
            use_cache=True,
            logits_to_keep=torch.tensor(columns, dtype=torch.int64, device=self.ids.device),
            slots=self.capture,
        ).logits
        if self.logits is None:
            self.logits = logits.new_empty(len(self.wave), logits.shape[-1])
        if ends:
            at, column = zip(*((row, columns.index(column)) for row, column in ends))
            self.logits[list(at)] = logits[list(at), list(column)]
        self.start, self.places = stop, self.places + rows * (stop - start)
