"""Free-running generation of many trials under one policy, with continuous refill.

Nothing is read back from the device on a decode step except which sequences have stopped, and that only every `poll`
steps.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cask_eval.engine.flight import Flight, MeterMismatch, Probe, Request, Running, checked
from cask_eval.engine.method import Policy
from cask_eval.engine.recorded import NotRecordable, record
from cask_eval.engine.regions import Regions
from cask_eval.engine.sampling import Sampling, choose, uniforms
from cask_eval.engine.transfer import indices
from cask_eval.engine.usage import Usage
from cask_eval.errors import ModelError
from cask_eval.residency import Residency
from cask_eval.schedule import Schedule

# Steps of one shape that are taken before the next one is recorded.
RECORD_AFTER = 12

# Steps until an event that never comes.
_NEVER = 1 << 62

# What a step adds to each of the host's counters (`_Run`): wait, chance, left, widest, behind, due.
_STEP = np.array([[-1], [-1], [-1], [1], [1], [0]])

# Of the steps between two events of a sequence, the share that it may stand still for the sake of company.
_PATIENCE = 1 / 8

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
    slots: int | None = None,
    poll: int | None = None,
    probe: Probe | None = None,
    usage: Usage | None = None,
    patience: int | None = None,
) -> Iterator[Outcome]:
    """Run every request; outcomes come in the order they finish.

    schedule: the policy's own at some budget (`policy.schedule(budget)`), or one part of it where it has several
    chains. slots: sequences in flight at once, by default as many as there is room for (`capacity.fitting`). poll:
    steps between looks at which sequences have stopped (default 1 on CPU, 8 on an accelerator, where a look is a
    synchronisation). usage: is added to. patience: decode steps that a sequence whose event is due may stand still
    until others are due, because an event costs nearly as much for one sequence as for many (default: an eighth of
    the steps between events; what is not recorded waits for nobody). In fp32 a trial's tokens do not depend on its
    company; in 16-bit types products round differently in batches of another size, which can decide a near-tie.

    Raises ModelError when the model is not on the slot attention, MethodError before the first forward when a prompt
    does not fit the budget, FloatingPointError on NaN scores or logits, MeterMismatch.
    """
    pending = checked(model, requests, policy, schedule)
    if not pending:
        return
    run = _Run(model, policy, schedule, sampling, pending, slots, probe, usage, patience)
    try:
        yield from _outcomes(run, poll or (1 if run.device.type == "cpu" else 8))
    finally:
        # What holds itself would keep its memory until somebody looks for such things.
        run.recordings.clear()
        run.cache.layers_view = None


def _outcomes(run: _Run, poll: int) -> Iterator[Outcome]:
    since = 0
    while run.busy:
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


def _recordable(model: PreTrainedModel, policy: Policy) -> bool:
    """Whether a step is the same operators every time: observers are other people's Python, packed entries move as they
    grow, and experts are chosen by the tokens."""
    config = model.config.get_text_config()
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    observed = any(hasattr(part, "observe") for part in policy.parts)
    return not (observed or policy.footprint.packing or experts)


class _Run(Flight):
    """Sequences that choose their own tokens. What a step does on the device (`forward`) is always the same for as many
    rows and columns; where nothing in it needs the host, it is recorded once for each (`engine.recorded`).

    The host counts in arrays, one number a slot: `wait` decode forwards until the next certain event, `chance` until a
    boundary may fire one, `left` until the length limit, `widest` the entries of the head that holds most, `due` 1
    while an event is. What `Running` says is brought up to date (`settle`) only where it is read.

    A sequence whose event is due stands still (`moving`) until the event comes; steps leave no trace of it. Sequences
    that once had an event together stay together, so that there are soon no more groups than `patience` keeps apart.
    """

    def __init__(
        self, model, policy: Policy, schedule: Schedule, sampling, pending: deque, slots, probe, usage, patience=None
    ):
        recorded = _recordable(model, policy)
        if patience is None:
            patience = int(schedule.delta * _PATIENCE) if schedule.trigger not in ("never", "every_step") else 0
        self.recorded, self.patience, self.stood = recorded, patience if recorded else 0, 0
        # What stands still has the next token's entry beyond those that the schedule knows of.
        spare = int(self.patience > 0)
        super().__init__(
            model, policy, schedule, pending, lambda _: sampling.max_new_tokens, slots, probe, usage, spare
        )
        self.sampling, self.spare = sampling, spare
        self.token, self.written, self.moving = self.state(), self.state(), self.state(dtype=torch.bool)
        self.uniform = self.state(sampling.max_new_tokens + 1, dtype=torch.float64) if sampling.temperature else None
        self.stop = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=self.device)
        self.boundaries = torch.tensor(schedule.boundaries, dtype=torch.int64, device=self.device)
        self.done.fill_(True)  # as a slot without a sequence is: nothing is metered there
        self.counters = np.zeros((6, self.slots), dtype=np.int64)
        self.wait, self.chance, self.left, self.widest, self.behind, self.due = self.counters
        self._forget()

    def _forget(self) -> None:
        """Have no recordings, and no memory that they shared."""
        self.recordings: dict[tuple[int, int], Callable[[], Tensor | None]] = {}
        self.steps: Counter[tuple[int, int]] = Counter()
        self.cache.forget_step()
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self.of_capacity = self.cache.capacity
        # Columns come in eighths of what there is, so that a growing cache needs few recordings.
        self.grain = max(16, -(-(self.cache.capacity - self.spare) // 128) * 16) if self.recorded else 16

    def enter(self, target: Tensor, wave: list[Request]) -> None:
        self.moving[target] = True
        if self.uniform is not None:
            draws = np.stack([uniforms(r.seed, self.sampling.max_new_tokens + 1) for r in wave])
            self.uniform[target] = torch.from_numpy(draws).to(self.device)

    def admit(self) -> None:
        before = self.active
        super().admit()
        for slot in range(before, self.active):
            self._count(slot)

    def _count(self, slot: int) -> None:
        """Begin to count from what the row's book says."""
        row = self.running[slot]
        self.wait[slot] = _NEVER if row.wait is None else row.wait
        self.chance[slot] = row.chance if self.schedule.boundaries else _NEVER
        self.left[slot] = self.sampling.max_new_tokens - 1 - row.step
        self.widest[slot], self.behind[slot], self.due[slot] = row.widest, 0, 0

    def settle(self, slot: int) -> Running:
        """The row's book, up to date."""
        row, steps = self.running[slot], int(self.behind[slot])
        row.book.grow(steps)
        row.widest += steps
        self.behind[slot] = 0
        return row

    def step(self) -> None:
        """One decode forward for every sequence that does not wait for an event, with the choice of the next tokens,
        then the events that do not wait any longer."""
        n = self.active
        if self.due[:n].all():
            self.events()
        moving = self.due[:n] == 0
        # Also for those that stand still: what is written for them must fall somewhere.
        self.make_room(1 + int(self.widest[:n].max()))
        width = self.width(1 + int(self.widest[:n][moving].max()))
        fed = self.token[:n].clone() if self.schedule.boundaries else None
        rows = self._rows(n) if self.recorded else n
        self.usage.step(rows, width, n)
        logits = self._replayed(rows, width) if self.recorded else self.forward(rows, width)
        self.counters[:, :n] += _STEP * moving
        if self.footprint.packing:
            self.cache.store.settle([self.settle(slot).book.resident for slot in range(n)])
        self._await(moving, fed)
        if self.probe:
            at = np.flatnonzero(moving).tolist()
            self.probe.logits([self.running[i].request for i in at], logits[indices(at, self.device)])

    def _await(self, moving: np.ndarray, fed: Tensor | None) -> None:
        """Whose events have become due by the step of those that were `moving` and were `fed` these tokens; the events,
        unless there is somebody to wait for."""
        n = self.active
        new = np.flatnonzero((self.wait[:n] == 0) & moving).tolist()
        if fed is not None:
            # Only where the text decides, the host must look at it.
            asked = np.flatnonzero((self.chance[:n] <= 0) & (self.wait[:n] != 0) & moving).tolist()
            if asked:
                at = torch.isin(fed[indices(asked, self.device)], self.boundaries).tolist()
                new += [slot for slot, boundary in zip(asked, at) if boundary]
        self.due[new] = 1
        waiting = self.due[:n] == 1
        if not waiting.any():
            return
        self.stood += waiting.sum() > len(new)  # the first one begins to wait now
        # In how many steps the others come, at the earliest.
        others = np.minimum(self.wait[:n], self.chance[:n])[~waiting].clip(1)
        if not (others <= self.patience - self.stood).any():
            self.events()
        elif new:
            self.moving[indices(new, self.device)] = False

    def events(self) -> None:
        """The events that are due."""
        due = np.flatnonzero(self.due[: self.active]).tolist()
        at = indices(due, self.device)
        self.due[due], self.stood = 0, 0
        self.moving[at] = True
        for slot in due:
            self.settle(slot)
        try:
            self._compress(due)
        except Exception:
            # What these said last came before an event that was not carried out: none of them is done.
            self.done[at] = self.ended[at]
            raise
        for slot in due:
            self._count(slot)

    def _rows(self, n: int) -> int:
        """Rows to compute for `n` sequences: rounded up, so that few recordings serve all numbers of them."""
        some = max(1, self.slots // 8)
        return min(self.slots, -(-n // some) * some)

    def _replayed(self, rows: int, width: int) -> Tensor | None:
        """`forward` by its recording."""
        if self.of_capacity != self.cache.capacity:  # the buffers are others
            self._forget()
        if (made := self.recordings.get((rows, width))) is not None:
            return made()
        # Recording costs some steps' time, and what a GPU does for the first time cannot be captured.
        self.steps[rows, width] += 1
        if self.steps[rows, width] <= RECORD_AFTER:
            return self.forward(rows, width)
        try:
            found = record(lambda: self.forward(rows, width), self.device, self.pool)
        except NotRecordable as error:
            raise ModelError(f"{self.geometry.name}: a decode step cannot be recorded: {error}") from error
        logits, self.recordings[rows, width] = found
        return logits

    def forward(self, rows: int, width: int) -> Tensor | None:
        """What a step does on the device, for the first `rows` slots: logits [rows, V] for a probe, which recordings
        would keep otherwise, too. What does not move is computed for nothing, and stays as it is."""
        moving, position = self.moving[:rows], self.position[:rows]
        read, held = self.cache.begin_step(rows, width, position, moving)
        idle = self.done[:rows] | ~moving
        self.metered[:rows] += read.masked_fill(idle, 0)
        self.metered_bytes[:rows] += held.masked_fill(idle, 0)
        at = self.cache.fill[0, :rows, 0] if self.reindexed else position
        logits = self.model(
            input_ids=self.token[:rows, None],
            position_ids=at[:, None],
            past_key_values=self.cache.layers_view,
            use_cache=True,
            slots=self.cache,
        ).logits[:, -1]
        position += moving
        self.cache.advance(moving)
        self.choose(slice(0, rows), logits)
        return logits if self.probe else None

    def emit(self, rows: slice, logits: Tensor, requests: list[Request]) -> None:
        if self.probe:
            self.probe.logits(requests, logits)
        self.choose(rows, logits)

    def choose(self, rows: slice, logits: Tensor) -> None:
        """Choose the next token of these slots, of those that move, from their logits [rows, V]."""
        written, done, moving = self.written[rows], self.done[rows], self.moving[rows]
        self.ended[rows] = torch.where(moving, done, self.ended[rows])
        uniform = None
        if self.uniform is not None:
            # What a sequence says after its end needs no numbers of its own.
            at = written.clamp(max=self.uniform.shape[1] - 1)
            uniform = self.uniform[rows].gather(1, at[:, None]).squeeze(1)
        token = choose(logits, uniform, self.sampling)
        # A logit row with NaN or without a finite maximum must not pass for an answer; -1 is caught when the trial
        # is collected.
        token = torch.where(torch.isfinite(logits.amax(-1)), token, -1)
        self.token[rows] = torch.where(moving, token.clamp(min=0), self.token[rows])
        spare, speaks = self.history.shape[1] - 1, moving & ~done
        self.history[rows].scatter_(1, torch.where(speaks, self.prompt[rows] + written, spare)[:, None], token[:, None])
        written += speaks
        last = (token[:, None] == self.stop).any(-1) | (token < 0) | (written >= self.sampling.max_new_tokens)
        done |= moving & last

    def any_at_limit(self) -> bool:
        """Whether a sequence must have stopped by length alone; it may not take another step."""
        return bool((self.left[: self.active] <= 0).any())

    def collect(self) -> Iterator[Outcome]:
        """Hand out the finished trials and free their slots."""
        done, fault = self._done(), None
        if self.due[done].any():  # an event after the last token that was fed belongs to the trial
            try:
                self.events()
            except Exception as error:
                done, fault = self._done(), error
        for slot in reversed(done):
            yield self._outcome(slot)
            self.remove(slot)
        if fault:
            raise fault

    def _done(self) -> list[int]:
        return [slot for slot, done in enumerate(self.done[: self.active].tolist()) if done]

    def remove(self, slot: int) -> None:
        final = self.active - 1
        self.counters[:, slot] = self.counters[:, final]
        super().remove(slot)
        self.moving[final], self.done[final] = False, True
        self.cache.fill[:, final] = 0

    def _outcome(self, slot: int) -> Outcome:
        row, count = self.settle(slot), int(self.written[slot])
        ids = tuple(self.history[slot, row.prompt : row.prompt + count].tolist())
        if ids and ids[-1] < 0:
            raise FloatingPointError(
                f"trial {row.request.key!r}: the model produced infinite or NaN logits at step {count - 1}"
            )
        return Outcome(row.request.key, ids, ids[-1] in self.sampling.stop_ids, **self.result(slot, count - 1))
