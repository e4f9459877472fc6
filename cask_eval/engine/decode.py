"""Free-running generation of many trials under one policy, with continuous refill.

Nothing is read back from the device on a decode step except which sequences have stopped, and that only every `poll`
steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cask_eval.engine.flight import Flight, MeterMismatch, Probe, Request, checked
from cask_eval.engine.method import Policy
from cask_eval.engine.regions import Regions
from cask_eval.engine.sampling import Sampling, choose, uniforms
from cask_eval.engine.transfer import indices
from cask_eval.residency import Residency
from cask_eval.schedule import Schedule

__all__ = ["MeterMismatch", "Outcome", "Probe", "Request", "generate"]


@dataclass(frozen=True)
class Outcome:
    """What a trial produced. `stopped` tells a stop token from the length limit; output_ids include the stop token.
    kept_min, kept_max: entries that any layer and head held after any event, None without events. regions: how much of
    the history its events left. allocated_bytes: what the trial's slot took up in the end, padding and positions
    included. measures: the method's own numbers, averaged over the events that gave them. Both depend on the company
    (the slot's size, last digits) and are no part of what makes two outcomes equal."""

    key: Any
    output_ids: tuple[int, ...]
    stopped: bool
    residency: Residency
    kept_min: int | None
    kept_max: int | None
    regions: Regions
    allocated_bytes: int = field(default=0, compare=False)
    measures: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def status(self) -> str:
        return "finished" if self.stopped else "truncated"


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    requests: Iterable[Request],
    policy: Policy,
    schedule: Schedule,
    sampling: Sampling,
    *,
    slots: int = 64,
    poll: int | None = None,
    probe: Probe | None = None,
) -> Iterator[Outcome]:
    """Run every request; outcomes come in the order they finish.

    schedule: the policy's own at some budget (`policy.schedule(budget)`), or one part of it where it has several
    chains. slots: sequences in flight at once. poll: steps between looks at which sequences have stopped (default 1
    on CPU, 8 on an accelerator, where a look is a synchronisation). In fp32 a trial's tokens do not depend on its
    company; in 16-bit types products round differently in batches of another size, which can decide a near-tie.

    Raises ModelError when the model is not on the slot attention, MethodError before the first forward when a prompt
    does not fit the budget, FloatingPointError on NaN scores or logits, MeterMismatch.
    """
    pending = checked(model, requests, policy, schedule)
    if not pending:
        return
    run = _Run(model, policy, schedule, sampling, pending, slots, probe)
    poll = poll or (1 if run.device.type == "cpu" else 8)
    since = 0
    while run.active or run.pending:
        try:
            run.admit()
            if run.active and not run.any_at_limit():
                run.step()
                since += 1
        except Exception:
            # Sequences that stopped since the last look are done, whatever befell another, or themselves as they ran on.
            yield from run.collect()
            raise
        if since >= poll or run.any_at_limit():
            yield from run.collect()
            since = 0


class _Run(Flight):
    def __init__(self, model, policy: Policy, schedule: Schedule, sampling: Sampling, pending: deque, slots, probe):
        super().__init__(model, policy, schedule, pending, lambda _: sampling.max_new_tokens, slots, probe)
        self.sampling = sampling
        self.token, self.written = self.state(), self.state()
        self.uniform = self.state(sampling.max_new_tokens + 1, dtype=torch.float64) if sampling.temperature else None
        self.stop = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=self.device)
        self.boundaries = torch.tensor(schedule.boundaries, dtype=torch.int64, device=self.device)

    def enter(self, target: Tensor, wave: list[Request]) -> None:
        if self.uniform is not None:
            draws = np.stack([uniforms(r.seed, self.sampling.max_new_tokens + 1) for r in wave])
            self.uniform[target] = torch.from_numpy(draws).to(self.device)

    def step(self) -> None:
        """One decode forward for every occupied slot, then the events that are due, then the next tokens."""
        n = self.active
        width = self.width(1 + max(b.widest for b in self.running))
        read, held = self.cache.begin_step(n, width, self.position[:n])
        self.metered[:n] += read.masked_fill(self.done[:n], 0)
        self.metered_bytes[:n] += held.masked_fill(self.done[:n], 0)
        position = self.cache.fill[0, :n, 0] if self.reindexed else self.position[:n]
        logits = self.model(
            input_ids=self.token[:n, None],
            position_ids=position[:, None],
            past_key_values=self.cache.layers_view,
            use_cache=True,
            slots=self.cache,
        ).logits[:, -1]
        self.position[:n] += 1
        due, asked = [], []
        for slot, row in enumerate(self.running):
            row.book.grow()
            row.widest += 1
            if row.wait is not None:
                row.wait -= 1
                row.chance -= 1
                if row.wait == 0:
                    due.append(slot)
                elif row.chance <= 0 and self.schedule.boundaries:
                    asked.append(slot)
        self.cache.end_step([row.book.resident for row in self.running])
        if asked:
            # Only where the text decides, the host must look at it.
            at = torch.isin(self.token[indices(asked, self.device)], self.boundaries).tolist()
            due = sorted([*due, *(slot for slot, boundary in zip(asked, at) if boundary)])
        if due:
            self._compress(due)
        self.emit(slice(0, n), logits, [b.request for b in self.running])

    def emit(self, rows: slice, logits: Tensor, requests: list[Request]) -> None:
        """Choose the next token of these slots from their logits [rows, V]."""
        if self.probe:
            self.probe.logits(requests, logits)
        written, done = self.written[rows], self.done[rows]
        uniform = None
        if self.uniform is not None:
            uniform = self.uniform[rows].gather(1, written[:, None]).squeeze(1)
        token = choose(logits, uniform, self.sampling)
        # A logit row with NaN or without a finite maximum must not pass for an answer; -1 is caught when the trial
        # is collected.
        token = torch.where(torch.isfinite(logits.amax(-1)), token, -1)
        self.token[rows] = token.clamp(min=0)
        spare = self.history.shape[1] - 1
        self.history[rows].scatter_(1, torch.where(done, spare, self.prompt[rows] + written)[:, None], token[:, None])
        written += ~done
        done |= torch.isin(token, self.stop) | (token < 0) | (written >= self.sampling.max_new_tokens)

    def any_at_limit(self) -> bool:
        """Whether a sequence must have stopped by length alone; it may not take another step."""
        return any(b.step + 1 >= self.sampling.max_new_tokens for b in self.running)

    def collect(self) -> Iterator[Outcome]:
        """Hand out the finished trials and free their slots."""
        done = self.done[: self.active].tolist()
        for slot in reversed([i for i, d in enumerate(done) if d]):
            yield self._outcome(slot)
            self.remove(slot)

    def _outcome(self, slot: int) -> Outcome:
        row, count = self.running[slot], int(self.written[slot])
        ids = tuple(self.history[slot, row.prompt : row.prompt + count].tolist())
        if ids and ids[-1] < 0:
            raise FloatingPointError(
                f"trial {row.request.key!r}: the model produced infinite or NaN logits at step {count - 1}"
            )
        return Outcome(row.request.key, ids, ids[-1] in self.sampling.stop_ids, **self.result(slot, count - 1))
