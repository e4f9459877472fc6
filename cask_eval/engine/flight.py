"""Sequences in flight under one policy: what generation and replay share.

The host plans lengths and events in plain integers (`schedule.Book`); the device holds the rest of each sequence's
state, and is not asked for any of it between events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cask_eval.engine.attention import NAME as SLOT_ATTENTION
from cask_eval.engine.capacity import fitting
from cask_eval.engine.contract import Compressed, Entries
from cask_eval.engine.method import Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.reading import READ_TOKENS, Reading
from cask_eval.engine.regions import Regions, wiped
from cask_eval.engine.slots import SlotCache
from cask_eval.engine.transfer import indices
from cask_eval.engine.usage import Usage
from cask_eval.errors import MethodError, ModelError
from cask_eval.residency import Residency
from cask_eval.schedule import Book, Schedule


@dataclass(frozen=True)
class Request:
    """One trial for the engine. `key` comes back with the outcome; `seed` is a 128-bit integer."""

    key: Any
    prompt_ids: tuple[int, ...]
    seed: int


class Probe(Protocol):
    """What tests and figures may watch. Rows are named by their requests."""

    def logits(self, requests: list[Request], logits: Tensor) -> None: ...

    def event(self, requests: list[Request], before: Entries, after: Compressed) -> None: ...


class MeterMismatch(RuntimeError):
    """The planned and the measured residency of a trial differ: the account cannot be trusted."""


@dataclass
class Running:
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


def checked(
    model: PreTrainedModel, requests: Iterable[Request], policy: Policy, schedule: Schedule
) -> deque[Any]:
    """The requests, if the model, the schedule and every prompt can be run. Raises ModelError when the model is not on
    the slot attention, MethodError when a prompt is empty or does not fit the budget."""
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
    return pending


class Flight:
    """Slots, and what is known of the sequences in them. `room`: the most tokens that may follow a request's prompt.
    `slots`: how many, None being as many as memory has room for (`capacity.fitting`). `usage` is added to. `spare`:
    entries a head of which the schedule knows nothing.

    Subclasses feed tokens, and say what happens to the logits of a prompt's last token (`emit`) and to the state that
    they add when sequences enter slots (`enter`)."""

    def __init__(
        self,
        model: PreTrainedModel,
        policy: Policy,
        schedule: Schedule,
        pending: deque,
        room: Callable[[Any], int],
        slots: int | None,
        probe: Probe | None,
        usage: Usage | None = None,
        spare: int = 0,
    ):
        self.usage = usage or Usage()
        self.model, self.policy, self.schedule, self.probe = model, policy, schedule, probe
        self.pending, self.device, self.geometry = pending, model.device, geometry(model)
        self.footprint, self.needs = policy.footprint, policy.needs
        self.reindexed = getattr(policy.representation, "reindexed", False)
        self.grain = 16  # columns are read in multiples of it
        self.slots = min(slots or fitting(model, pending, policy, schedule, room), len(pending))
        # A prompt that is compressed before decoding never needs room for itself.
        capacity = max(schedule.capacity(len(r.prompt_ids), room(r)) for r in pending)
        self.cache = SlotCache(
            self.geometry,
            self.slots,
            max(1, capacity) + spare,
            self.device,
            self.needs,
            self.footprint.packing,
            [part for part in policy.parts if hasattr(part, "observe")],
        )
        self.running: list[Running] = []  # slot i holds running[i]: occupied slots are always a prefix
        self.reading: Reading | None = None
        self._state: list[Tensor] = []
        self.position, self.metered, self.metered_bytes = self.state(), self.state(), self.state()
        self.prompt, self.seed, self.event_count = self.state(), self.state(), self.state()
        self.kept_min, self.kept_max, self.regions = self.state(), self.state(), self.state(3)
        # done: has stopped; ended: had, before the newest token.
        self.done, self.ended = self.state(dtype=torch.bool), self.state(dtype=torch.bool)
        # The last column is spare: what a sequence goes on to say after its end falls into it.
        self.history = self.state(max(len(r.prompt_ids) + room(r) for r in pending) + 1)
        self.measures: dict[str, Tensor] = {}  # name → [S, 2] sum and number of events

    def state(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """A tensor [S, *shape] that is zeroed when a sequence enters a slot, and moves with it."""
        new = torch.zeros(self.slots, *shape, dtype=dtype, device=self.device)
        self._state.append(new)
        return new

    @property
    def active(self) -> int:
        return len(self.running)

    def enter(self, target: Tensor, wave: list) -> None:
        """`wave` takes the slots `target`, whose state is zeroed and whose history holds the prompts."""

    def emit(self, rows: slice, logits: Tensor, requests: list) -> None:
        """`logits` [rows, V] follow the last token of the sequences in these slots."""
        raise NotImplementedError

    # -- admission ---------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether there is a sequence that is not through."""
        return bool(self.running or self.pending or self.reading)

    def admit(self) -> None:
        """Fill free slots. Waits until an eighth of them is free, so that prompts run in company. Of prompts that take
        several forwards one is done; the sequences that are in flight take a step before the next."""
        free = self.slots - self.active
        if not self.reading and (not self.pending or (self.active and free < max(1, self.slots // 8))):
            return
        while self.reading or (self.pending and self.active < self.slots):
            self.reading = self.reading or Reading(self.model, self.geometry, self._wave(), self.cache)
            self.reading.step()
            if self.reading.left:
                if self.running:
                    return
                continue
            done, self.reading = self.reading, None
            self.usage.prompts(done.places, done.lengths)
            self._place(done)

    def _wave(self) -> list:
        """Prompts to read together, longest first: at least one."""
        wave, longest, free = [], 0, self.slots - self.active
        while self.pending and len(wave) < min(free, 32):
            longest = max(longest, len(self.pending[0].prompt_ids))
            if wave and longest * (len(wave) + 1) > READ_TOKENS:
                break
            wave.append(self.pending.popleft())
        return sorted(wave, key=lambda r: -len(r.prompt_ids))

    def _place(self, reading: Reading) -> None:
        """Put the sequences whose prompts were read into free slots."""
        wave, lengths, capture, logits = reading.wave, reading.lengths, reading.capture, reading.logits
        rows, longest, first, prompt = len(wave), lengths[0], self.active, capture.lengths
        target = torch.arange(first, first + rows, device=self.device)
        for buffer in (*self._state, *self.measures.values()):
            buffer[target] = 0
        self.prompt[target] = self.position[target] = prompt
        self.history[target, :longest] = reading.ids
        self.kept_min[target] = np.iinfo(np.int64).max
        self.seed[target] = torch.tensor([_signed(r.seed) for r in wave], device=self.device)
        self.enter(target, wave)
        self.cache.remember(target, capture)

        books = [Running(r, Book(self.schedule, n), n) for r, n in zip(wave, lengths)]
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
            self.plan(book)
        self.running += books
        self.emit(slice(first, first + rows), logits, wave)

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

    # -- events ------------------------------------------------------------------------------------------------

    def plan(self, row: Running) -> None:
        """When the row's next event comes, or may come."""
        row.wait = row.book.wait()
        if self.schedule.trigger == "boundary":
            row.chance = self.schedule.first_chance(row.book.resident, row.book.prefix, row.prompt)

    def width(self, needed: int) -> int:
        """Columns to read for rows that hold up to `needed` entries a head, for which there is room."""
        return min(self.cache.capacity, -(-needed // self.grain) * self.grain)

    def make_room(self, needed: int) -> None:
        """Capacity for `needed` entries a head: some head may hold more than the average."""
        if needed > self.cache.capacity:
            self.cache.reserve(needed + self.schedule.delta)  # for a whole cycle

    def _compress(self, due: list[int]) -> None:
        rows = [self.running[i] for i in due]
        at = indices(due, self.device)
        longest = max(row.book.position for row in rows)
        entries = self.cache.entries(at, max(row.widest for row in rows), **self._about(at, longest))
        self._event(entries, at, rows)
        for row in rows:
            self.plan(row)

    def _event(self, entries: Entries, at: Tensor, rows: list[Running]) -> None:
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
        live = ~self.ended[at]
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
                total = self.measures[name] = torch.zeros(self.slots, 2, dtype=torch.float64, device=self.device)
            value = value.double()
            given = torch.isfinite(value) & live
            total[at] += torch.stack([value.masked_fill(~given, 0), given.double()], -1)

    # -- collection --------------------------------------------------------------------------------------------

    def remove(self, slot: int) -> None:
        """Free a slot; the last occupied one moves into the gap."""
        final = self.active - 1
        if slot != final:
            self.cache.move(final, slot)
            for buffer in (*self._state, *self.measures.values()):
                buffer[slot] = buffer[final]
            self.running[slot] = self.running[final]
        self.running.pop()

    def result(self, slot: int, steps: int) -> dict[str, Any]:
        """The fields of a `Result` for the sequence in this slot, of which `steps` decode forwards count. Raises
        MeterMismatch."""
        row, g = self.running[slot], self.geometry
        events = [e for e in row.events if e[0] <= steps]
        account = Residency(g.layers, g.kv_heads, g.entry_bytes, row.prompt, steps, events).settle(self.footprint)
        self.usage.trial(steps, account.entries / (g.layers * g.kv_heads))
        metered = int(self.metered[slot]), int(self.metered_bytes[slot])
        planned = account.entries, account.payload_bytes + account.aux_bytes
        if metered != planned:
            raise MeterMismatch(
                f"trial {row.request.key!r}: {planned[0]} entries and {planned[1]} bytes planned, {metered[0]} and "
                f"{metered[1]} measured"
            )
        measured = {name: total[slot].tolist() for name, total in self.measures.items()}
        return {
            "residency": account,
            "kept_min": int(self.kept_min[slot]) if events else None,
            "kept_max": int(self.kept_max[slot]) if events else None,
            "regions": Regions(*self.regions[slot].tolist()),
            "allocated_bytes": self.cache.slot_bytes,
            "measures": {name: total / times for name, (total, times) in sorted(measured.items()) if times},
        }


def _signed(seed: int) -> int:
    """The low 64 bits of a seed as the int64 that tensors hold."""
    low = seed & (2**64 - 1)
    return low - 2**64 if low >= 2**63 else low
