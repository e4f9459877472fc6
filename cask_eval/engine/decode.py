"""Free-running generation of many trials under one policy, with continuous refill.

The host plans lengths and events in plain integers; nothing is read back from the device on a decode step except
which sequences have stopped, and that only every `poll` steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cask_eval.engine.attention import NAME as SLOT_ATTENTION
from cask_eval.engine.contract import Entries
from cask_eval.engine.method import Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.sampling import Sampling, choose, uniforms
from cask_eval.engine.slots import CaptureCache, SlotCache
from cask_eval.errors import MethodError, ModelError
from cask_eval.residency import Residency, Schedule


@dataclass(frozen=True)
class Request:
    """One trial for the engine. `key` comes back with the outcome; `seed` is a 128-bit integer."""

    key: Any
    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a trial produced. `stopped` tells a stop token from the length limit; output_ids include the stop token."""

    key: Any
    output_ids: tuple[int, ...]
    stopped: bool
    residency: Residency
    kept_min: int | None
    kept_max: int | None


class Probe(Protocol):
    """What tests and figures may watch. Rows are named by their requests."""

    def logits(self, requests: list[Request], logits: Tensor) -> None: ...

    def event(self, requests: list[Request], before: Entries, keep: Tensor) -> None: ...


class MeterMismatch(RuntimeError):
    """The planned and the measured residency of a trial differ: the account cannot be trusted."""


@dataclass
class _Running:
    """The host's book of one occupied slot."""

    request: Request
    step: int = 0  # decode forwards done
    resident: int = 0  # entries per layer and head
    wait: int = 0  # decode forwards until the next event; 0 when none will come
    events: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def prompt(self) -> int:
        return len(self.request.prompt_ids)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    requests: Iterable[Request],
    policy: Policy,
    budget: int,
    sampling: Sampling,
    *,
    slots: int = 64,
    poll: int | None = None,
    probe: Probe | None = None,
) -> Iterator[Outcome]:
    """Run every request; outcomes come in the order they finish.

    slots: sequences in flight at once. poll: steps between looks at which sequences have stopped (default 1 on CPU,
    8 on an accelerator, where a look is a synchronisation). In fp32 a trial's tokens do not depend on its company; in
    16-bit types products round differently in batches of another size, which can decide a near-tie.

    Raises ModelError when the model is not on the slot attention, MethodError before the first forward when a prompt
    does not fit the budget, FloatingPointError on NaN scores or logits, MeterMismatch.
    """
    if model.config._attn_implementation != SLOT_ATTENTION:
        raise ModelError(
            f"the model runs on {model.config._attn_implementation!r} attention, which would read empty "
            f"slots; load it with load_model or call set_attn_implementation({SLOT_ATTENTION!r})"
        )
    pending = deque(requests)
    schedule = policy.method.schedule(budget)
    for request in pending:
        policy.method.check(len(request.prompt_ids), budget)
        if not request.prompt_ids:
            raise MethodError(f"trial {request.key!r} has an empty prompt")
    if not pending:
        return
    run = _Run(model, policy, schedule, sampling, pending, slots, probe)
    poll = poll or (1 if run.device.type == "cpu" else 8)
    since = 0
    while run.active or run.pending:
        run.admit()
        if run.active and not run.any_at_limit():
            run.step()
            since += 1
        if since >= poll or run.any_at_limit():
            yield from run.collect()
            since = 0


class _Run:
    def __init__(self, model, policy, schedule: Schedule, sampling, pending: deque, slots, probe):
        self.model, self.policy, self.schedule, self.sampling, self.probe = model, policy, schedule, sampling, probe
        self.pending, self.device, self.geometry = pending, model.device, geometry(model)
        slots = min(slots, len(pending))
        # A prompt that is compressed before decoding never needs room for itself.
        capacity = max(schedule.capacity(len(r.prompt_ids), sampling.max_new_tokens) for r in pending)
        self.cache = SlotCache(self.geometry, slots, max(1, capacity), self.device)
        self.running: list[_Running] = []  # slot i holds running[i]: occupied slots are always a prefix

        def state(*shape: int, dtype=torch.int64) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=self.device)

        self.token, self.position, self.written, self.metered = state(), state(), state(), state()
        self.prompt, self.seed, self.event_count = state(), state(), state()
        self.kept_min, self.kept_max = state(), state()
        self.done = state(dtype=torch.bool)
        self.output = state(sampling.max_new_tokens + 1)
        self.uniform = state(sampling.max_new_tokens + 1, dtype=torch.float64) if sampling.temperature else None
        self.stop = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=self.device)
        self._state = [
            self.token,
            self.position,
            self.written,
            self.metered,
            self.prompt,
            self.seed,
            self.event_count,
            self.kept_min,
            self.kept_max,
            self.done,
            self.output,
        ]
        if self.uniform is not None:
            self._state.append(self.uniform)

    @property
    def active(self) -> int:
        return len(self.running)

    # -- admission ---------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Fill free slots. Waits until an eighth of them is free, so that prompts run in company."""
        free = self.cache.slots - self.active
        if not self.pending or (self.active and free < max(1, self.cache.slots // 8)):
            return
        while free and self.pending:
            wave = [self.pending.popleft() for _ in range(min(free, 32, len(self.pending)))]
            self._prefill(wave)
            free -= len(wave)

    def _prefill(self, wave: list[Request]) -> None:
        rows, lengths = len(wave), [len(r.prompt_ids) for r in wave]
        longest = max(lengths)
        # Prompts start at column 0; what follows a shorter one is invisible to it (causal) and never cached.
        ids = torch.tensor([[*r.prompt_ids, *([0] * (longest - n))] for r, n in zip(wave, lengths)], device=self.device)
        prompt = torch.tensor(lengths, device=self.device)
        capture = CaptureCache(self.geometry.layers)
        last, column = torch.unique(prompt - 1, return_inverse=True)
        positions = torch.arange(longest, device=self.device)
        logits = self.model(
            input_ids=ids,
            position_ids=positions.expand(rows, -1),
            past_key_values=capture.layers_view,
            use_cache=True,
            logits_to_keep=last,
        ).logits[torch.arange(rows, device=self.device), column]

        first = self.active
        target = torch.arange(first, first + rows, device=self.device)
        for buffer in self._state:
            buffer[target] = 0
        self.prompt[target] = self.position[target] = prompt
        self.kept_min[target] = np.iinfo(np.int64).max
        self.seed[target] = torch.tensor([_signed(r.seed) for r in wave], device=self.device)
        if self.uniform is not None:
            draws = np.stack([uniforms(r.seed, self.sampling.max_new_tokens + 1) for r in wave])
            self.uniform[target] = torch.from_numpy(draws).to(self.device)

        resident = positions[None] < prompt[:, None]
        g = self.geometry
        entries = Entries(
            keys=torch.stack(capture.keys),
            values=torch.stack(capture.values),
            positions=torch.where(resident, positions, -1)[None, :, None].expand(g.layers, rows, g.kv_heads, longest),
            prompt_tokens=prompt,
            length=prompt,
            seeds=self.seed[target],
            events=self.event_count[target],
            geometry=g,
        )
        books = [_Running(r, resident=n) for r, n in zip(wave, lengths)]
        keep, kept = entries.positions >= 0, longest
        fires = [self.schedule.prompt == "compete" and self.schedule.fires(n, n, n) for n in lengths]
        if any(fires):
            keep = keep.clone()
            at = torch.tensor([i for i, f in enumerate(fires) if f], device=self.device)
            keep[:, at] = self._decide(_rows(entries, at), target[at], [books[i] for i in at.tolist()])
            kept = max(b.resident for b in books)
        self.cache.place(target, entries, keep, kept)
        for book in books:
            book.wait = self._wait(book)
        self.running += books
        self._emit(slice(first, first + rows), logits, wave)

    # -- decoding ----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One decode forward for every occupied slot, then the events that are due, then the next tokens."""
        n = self.active
        width = 1 + max(b.resident for b in self.running)
        width = min(self.cache.capacity, -(-width // 16) * 16)
        read = self.cache.begin_step(n, width, self.position[:n])
        self.metered[:n] += read.masked_fill(self.done[:n], 0)
        logits = self.model(
            input_ids=self.token[:n, None],
            position_ids=self.position[:n, None],
            past_key_values=self.cache.layers_view,
            use_cache=True,
            slots=self.cache,
        ).logits[:, -1]
        self.cache.end_step()
        self.position[:n] += 1
        due = []
        for slot, book in enumerate(self.running):
            book.step += 1
            book.resident += 1
            book.wait -= 1
            if book.wait == 0:
                due.append(slot)
        if due:
            self._compress(due)
        self._emit(slice(0, n), logits, [b.request for b in self.running])

    def _compress(self, due: list[int]) -> None:
        books = [self.running[i] for i in due]
        at = torch.tensor(due, device=self.device)
        entries = self.cache.entries(
            at, max(b.resident for b in books), self.prompt[at], self.position[at], self.seed[at], self.event_count[at]
        )
        keep = self._decide(entries, at, books)
        self.cache.place(at, entries, keep, max(b.resident for b in books))
        for book in books:
            book.wait = self._wait(book)

    def _decide(self, entries: Entries, at: Tensor, books: list[_Running]) -> Tensor:
        targets = [self.schedule.target(b.prompt) for b in books]
        keep = self.policy.keep(entries, torch.tensor(targets, device=self.device))
        if self.probe:
            self.probe.event([b.request for b in books], entries, keep)
        counts = keep.sum(-1).movedim(1, 0).flatten(1)
        self.kept_min[at] = self.kept_min[at].minimum(counts.amin(1))
        self.kept_max[at] = self.kept_max[at].maximum(counts.amax(1))
        self.event_count[at] += 1
        heads = self.geometry.layers * self.geometry.kv_heads
        for book, target in zip(books, targets):
            book.events.append((book.step, book.resident * heads, target * heads))
            book.resident = target
        return keep

    def _wait(self, book: _Running) -> int:
        return self.schedule.next_event(book.resident, book.prompt, book.prompt + book.step) or 0

    def _emit(self, rows: slice, logits: Tensor, requests: list[Request]) -> None:
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
        # What a stopped sequence goes on to say until it is collected falls into a spare column.
        spare = self.sampling.max_new_tokens
        self.output[rows].scatter_(1, torch.where(done, spare, written)[:, None], token[:, None])
        written += ~done
        done |= torch.isin(token, self.stop) | (token < 0) | (written >= spare)

    # -- collection --------------------------------------------------------------------------------------------

    def any_at_limit(self) -> bool:
        """Whether a sequence must have stopped by length alone; it may not take another step."""
        return any(b.step + 1 >= self.sampling.max_new_tokens for b in self.running)

    def collect(self) -> Iterator[Outcome]:
        """Hand out the finished trials and free their slots; the last occupied slot moves into each gap."""
        done = self.done[: self.active].tolist()
        for slot in reversed([i for i, d in enumerate(done) if d]):
            book = self.running[slot]
            yield self._outcome(slot, book)
            final = self.active - 1
            if slot != final:
                self.cache.move(final, slot)
                for buffer in self._state:
                    buffer[slot] = buffer[final]
                self.running[slot] = self.running[final]
            self.running.pop()

    def _outcome(self, slot: int, book: _Running) -> Outcome:
        count = int(self.written[slot])
        ids = tuple(self.output[slot, :count].tolist())
        if ids and ids[-1] < 0:
            raise FloatingPointError(
                f"trial {book.request.key!r}: the model produced infinite or NaN logits at step {count - 1}"
            )
        g = self.geometry
        account = Residency(
            g.layers, g.kv_heads, g.entry_bytes, book.prompt, count - 1, [e for e in book.events if e[0] < count]
        )
        account.entries, account.peak_entries = account.tally()
        account.payload_bytes = account.entries * g.entry_bytes
        metered = int(self.metered[slot])
        if metered != account.entries:
            raise MeterMismatch(f"trial {book.request.key!r}: {account.entries} entries planned, {metered} measured")
        compressed = bool(account.events)
        return Outcome(
            book.request.key,
            ids,
            ids[-1] in self.sampling.stop_ids,
            account,
            int(self.kept_min[slot]) if compressed else None,
            int(self.kept_max[slot]) if compressed else None,
        )


def _rows(entries: Entries, at: Tensor) -> Entries:
    return Entries(
        keys=entries.keys[:, at],
        values=entries.values[:, at],
        positions=entries.positions[:, at],
        prompt_tokens=entries.prompt_tokens[at],
        length=entries.length[at],
        seeds=entries.seeds[at],
        events=entries.events[at],
        geometry=entries.geometry,
    )


def _signed(seed: int) -> int:
    """The low 64 bits of a seed as the int64 that tensors hold."""
    low = seed & (2**64 - 1)
    return low - 2**64 if low >= 2**63 else low
