"""Free-running generation of many trials under one policy, with continuous refill.

The host plans lengths and events in plain integers; nothing is read back from the device on a decode step except
which sequences have stopped, and that only every `poll` steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cask_eval.engine.attention import NAME as SLOT_ATTENTION
from cask_eval.engine.contract import Compressed, Entries
from cask_eval.engine.method import Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.regions import Regions, wiped
from cask_eval.engine.sampling import Sampling, choose, uniforms
from cask_eval.engine.slots import CaptureCache, SlotCache
from cask_eval.engine.transfer import indices
from cask_eval.errors import MethodError, ModelError
from cask_eval.residency import Residency
from cask_eval.schedule import Book, Schedule


# Tokens of prompts read at once, padding included: their keys and values lie beside the slots for that long.
_PREFILL_TOKENS = 1 << 14


@dataclass(frozen=True)
class Request:
    """One trial for the engine. `key` comes back with the outcome; `seed` is a 128-bit integer."""

    key: Any
    prompt_ids: tuple[int, ...]
    seed: int


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


class Probe(Protocol):
    """What tests and figures may watch. Rows are named by their requests."""

    def logits(self, requests: list[Request], logits: Tensor) -> None: ...

    def event(self, requests: list[Request], before: Entries, after: Compressed) -> None: ...


class MeterMismatch(RuntimeError):
    """The planned and the measured residency of a trial differ: the account cannot be trusted."""


@dataclass
class _Running:
    """The host's book of one occupied slot."""

    request: Request
    book: Book
    widest: int  # entries of the head that holds most
    wait: int | None = None  # decode forwards until the next certain event
    chance: int = 0  # decode forwards until a boundary may fire one
    events: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def step(self) -> int:
        """Decode forwards done."""
        return self.book.position - self.prompt


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
    if model.config._attn_implementation != SLOT_ATTENTION:
        raise ModelError(
            f"the model runs on {model.config._attn_implementation!r} attention, which would read empty "
            f"slots; load it with load_model or call set_attn_implementation({SLOT_ATTENTION!r})"
        )
    if schedule.chains > 1:
        raise MethodError(f"a schedule of {schedule.chains} chains is run chain by chain; see Schedule.split")
    pending = deque(requests)
    for request in pending:
        policy.method.admit(len(request.prompt_ids), schedule)
        if not request.prompt_ids:
            raise MethodError(f"trial {request.key!r} has an empty prompt")
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


class _Run:
    def __init__(self, model, policy: Policy, schedule: Schedule, sampling, pending: deque, slots, probe):
        self.model, self.policy, self.schedule, self.sampling, self.probe = model, policy, schedule, sampling, probe
        self.pending, self.device, self.geometry = pending, model.device, geometry(model)
        self.footprint, self.needs = policy.footprint, policy.needs
        self.observers = [part for part in policy.parts if hasattr(part, "observe")]
        self.reindexed = getattr(policy.representation, "reindexed", False)
        slots = min(slots, len(pending))
        # A prompt that is compressed before decoding never needs room for itself.
        capacity = max(schedule.capacity(len(r.prompt_ids), sampling.max_new_tokens) for r in pending)
        self.cache = SlotCache(
            self.geometry,
            slots,
            max(1, capacity),
            self.device,
            self.needs,
            self.footprint.packing,
            self.observers,
        )
        self.running: list[_Running] = []  # slot i holds running[i]: occupied slots are always a prefix

        def state(*shape: int, dtype=torch.int64) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=self.device)

        self.token, self.position, self.written = state(), state(), state()
        self.metered, self.metered_bytes = state(), state()
        self.prompt, self.seed, self.event_count = state(), state(), state()
        self.kept_min, self.kept_max, self.regions = state(), state(), state(3)
        self.done = state(dtype=torch.bool)
        longest = max(len(r.prompt_ids) for r in pending)
        self.history = state(longest + sampling.max_new_tokens + 1)
        self.uniform = state(sampling.max_new_tokens + 1, dtype=torch.float64) if sampling.temperature else None
        self.stop = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=self.device)
        self.boundaries = torch.tensor(schedule.boundaries, dtype=torch.int64, device=self.device)
        self.measures: dict[str, Tensor] = {}  # name → [S, 2] sum and number of events
        self._state = [
            self.token,
            self.position,
            self.written,
            self.metered,
            self.metered_bytes,
            self.prompt,
            self.seed,
            self.event_count,
            self.kept_min,
            self.kept_max,
            self.regions,
            self.done,
            self.history,
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
            wave = self._wave(free)
            self._prefill(wave)
            free -= len(wave)

    def _wave(self, free: int) -> list[Request]:
        """Prompts to read in one forward, padded to the longest: at least one."""
        wave, longest = [], 0
        while self.pending and len(wave) < min(free, 32):
            longest = max(longest, len(self.pending[0].prompt_ids))
            if wave and longest * (len(wave) + 1) > _PREFILL_TOKENS:
                break
            wave.append(self.pending.popleft())
        return wave

    def _prefill(self, wave: list[Request]) -> None:
        rows, lengths = len(wave), [len(r.prompt_ids) for r in wave]
        longest = max(lengths)
        # Prompts start at column 0; what follows a shorter one is invisible to it (causal) and never cached.
        ids = torch.tensor([[*r.prompt_ids, *([0] * (longest - n))] for r, n in zip(wave, lengths)], device=self.device)
        prompt = torch.tensor(lengths, device=self.device)
        capture = CaptureCache(self.geometry, prompt, longest, self.needs, self.observers)
        last, column = torch.unique(prompt - 1, return_inverse=True)
        logits = self.model(
            input_ids=ids,
            position_ids=torch.arange(longest, device=self.device).expand(rows, -1),
            past_key_values=capture.layers_view,
            use_cache=True,
            logits_to_keep=last,
            slots=capture,
        ).logits[torch.arange(rows, device=self.device), column]

        first = self.active
        target = torch.arange(first, first + rows, device=self.device)
        for buffer in (*self._state, *self.measures.values()):
            buffer[target] = 0
        self.prompt[target] = self.position[target] = prompt
        self.history[target, :longest] = ids
        self.kept_min[target] = np.iinfo(np.int64).max
        self.seed[target] = torch.tensor([_signed(r.seed) for r in wave], device=self.device)
        if self.uniform is not None:
            draws = np.stack([uniforms(r.seed, self.sampling.max_new_tokens + 1) for r in wave])
            self.uniform[target] = torch.from_numpy(draws).to(self.device)
        self.cache.remember(target, capture)

        books = [_Running(r, Book(self.schedule, n), n) for r, n in zip(wave, lengths)]
        entries = capture.entries(**self._about(target, longest))
        fires = [self.schedule.compresses_prompt(n) for n in lengths]
        # Those that are compressed at once and those that are not lie in different slots.
        for fire in (True, False):
            if chosen := [i for i, f in enumerate(fires) if f == fire]:
                at, part = indices(chosen, self.device), [books[i] for i in chosen]
                some = entries if len(chosen) == rows else entries.rows(at)
                if fire:
                    self._event(some, target[at], part)
                else:
                    kept = max(b.prompt for b in part)
                    self.cache.reserve(kept)
                    self.cache.place(target[at], some, some.resident, kept, [b.prompt for b in part])
        for book in books:
            self._plan(book)
        self.running += books
        self._emit(slice(first, first + rows), logits, wave)

    def _about(self, at: Tensor, longest: int) -> dict[str, Tensor]:
        """The fields of Entries that describe the sequences in slots `at`, up to `longest` tokens."""
        tokens = self.history[at, :longest]
        past = torch.arange(longest, device=self.device) >= self.position[at, None]
        return {
            "prompt_tokens": self.prompt[at],
            "length": self.position[at],
            "seeds": self.seed[at],
            "events": self.event_count[at],
            "tokens": tokens.masked_fill(past, -1),
        }

    # -- decoding ----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One decode forward for every occupied slot, then the events that are due, then the next tokens."""
        n = self.active
        width = 1 + max(b.widest for b in self.running)
        if width > self.cache.capacity:  # some head holds more than the average: room for a whole cycle
            self.cache.reserve(width + self.schedule.delta)
        width = min(self.cache.capacity, -(-width // 16) * 16)
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
        self._emit(slice(0, n), logits, [b.request for b in self.running])

    def _compress(self, due: list[int]) -> None:
        rows = [self.running[i] for i in due]
        at = indices(due, self.device)
        longest = max(row.book.position for row in rows)
        entries = self.cache.entries(at, max(row.widest for row in rows), **self._about(at, longest))
        self._event(entries, at, rows)
        for row in rows:
            self._plan(row)

    def _event(self, entries: Entries, at: Tensor, rows: list[_Running]) -> None:
        """Compress `entries` and put what is kept into the slots `at`."""
        heads = self.geometry.layers * self.geometry.kv_heads
        before = [(row.book.resident, row.book.prefix) for row in rows]
        targets = [row.book.fire().resident for row in rows]
        for row, (resident, _), target in zip(rows, before, targets):
            row.events.append((row.step, resident * heads, target * heads))
        entries = replace(
            entries,
            prefix=indices([prefix for _, prefix in before], self.device),
            prefix_kept=indices([row.book.prefix for row in rows], self.device),
        )
        after = self.policy.compress(entries, indices(targets, self.device))
        if self.probe:
            self.probe.event([row.request for row in rows], entries, after)
        counts = after.keep.sum(-1).movedim(1, 0).flatten(1)
        most = counts.amax(1)
        # What a sequence that has stopped goes through until it is collected belongs to no trial.
        live = ~self.done[at]
        self.kept_min[at] = torch.where(live, self.kept_min[at].minimum(counts.amin(1)), self.kept_min[at])
        self.kept_max[at] = torch.where(live, self.kept_max[at].maximum(most), self.kept_max[at])
        regions = wiped(entries.positions, after.keep, entries.length, self.regions[at])
        self.regions[at] = torch.where(live[:, None], regions, self.regions[at])
        self.event_count[at] += 1
        self._measure(at, after, live)
        for row, widest, target in zip(rows, most.tolist(), targets):
            if self.footprint.packing and widest != target:
                raise MethodError("packed keys and values need equally many entries in all layers and heads")
            row.widest = widest
        kept = max(row.widest for row in rows)
        self.cache.reserve(kept)
        self.cache.place(at, after.entries, after.keep, kept, targets)

    def _measure(self, at: Tensor, after: Compressed, live: Tensor) -> None:
        for name, value in after.measures.items():
            total = self.measures.get(name)
            if total is None:
                total = self.measures[name] = torch.zeros(self.cache.slots, 2, dtype=torch.float64, device=self.device)
            value = value.double()
            given = torch.isfinite(value) & live
            total[at] += torch.stack([value.masked_fill(~given, 0), given.double()], -1)

    def _plan(self, row: _Running) -> None:
        row.wait = row.book.wait()
        if self.schedule.trigger == "boundary":
            row.chance = self.schedule.first_chance(row.book.resident, row.book.prefix, row.prompt)

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
        spare = self.history.shape[1] - 1
        self.history[rows].scatter_(1, torch.where(done, spare, self.prompt[rows] + written)[:, None], token[:, None])
        written += ~done
        done |= torch.isin(token, self.stop) | (token < 0) | (written >= self.sampling.max_new_tokens)

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
                for buffer in (*self._state, *self.measures.values()):
                    buffer[slot] = buffer[final]
                self.running[slot] = self.running[final]
            self.running.pop()

    def _outcome(self, slot: int, row: _Running) -> Outcome:
        count = int(self.written[slot])
        ids = tuple(self.history[slot, row.prompt : row.prompt + count].tolist())
        if ids and ids[-1] < 0:
            raise FloatingPointError(
                f"trial {row.request.key!r}: the model produced infinite or NaN logits at step {count - 1}"
            )
        g, key = self.geometry, row.request.key
        events = [e for e in row.events if e[0] < count]
        account = Residency(g.layers, g.kv_heads, g.entry_bytes, row.prompt, count - 1, events).settle(self.footprint)
        metered = int(self.metered[slot]), int(self.metered_bytes[slot])
        planned = account.entries, account.payload_bytes + account.aux_bytes
        if metered != planned:
            raise MeterMismatch(
                f"trial {key!r}: {planned[0]} entries and {planned[1]} bytes planned, {metered[0]} and {metered[1]} "
                "measured"
            )
        measured = {name: total[slot].tolist() for name, total in self.measures.items()}
        return Outcome(
            key,
            ids,
            ids[-1] in self.sampling.stop_ids,
            account,
            int(self.kept_min[slot]) if events else None,
            int(self.kept_max[slot]) if events else None,
            Regions(*self.regions[slot].tolist()),
            self.cache.slot_bytes,
            {name: total / times for name, (total, times) in sorted(measured.items()) if times},
        )


def _signed(seed: int) -> int:
    """The low 64 bits of a seed as the int64 that tensors hold."""
    low = seed & (2**64 - 1)
    return low - 2**64 if low >= 2**63 else low
