"""What stayed in the cache of one trial and for how long, exactly (methods.md §4).

An *entry* is one key/value pair of one layer and KV head. Counts here are entries summed over layers and KV heads
unless a name says otherwise. Step t = 1 … T is the decode forward that consumes the t-th output token; the forward
over the prompt is step 0 and is not averaged. Counts are taken when step t's attention reads the cache: after the
append, before any event at t.

No torch and no pydantic here: the engine, the solver and the verifier share this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

from cask_eval.footprint import Footprint
from cask_eval.schedule import Book, Event, Schedule


@dataclass
class Residency:
    """The exact account of one trial.

    events: (step, before, after) in entries summed over layers and heads; step 0 is an event on the bare prompt.
    entries, payload_bytes, aux_bytes: sums over the decode steps. peak_entries, peak_bytes: the largest count of any
    step. entry_bytes: bytes of one full-precision entry, (d_k + d_v)·w. chains: the accounts of the chains of a trial
    that ran several side by side; then `events` is empty and every other number is that of `join`.
    """

    layers: int
    kv_heads: int
    entry_bytes: int
    prompt_tokens: int
    steps: int
    events: list[tuple[int, int, int]] = field(default_factory=list)
    entries: int = 0
    payload_bytes: int = 0
    aux_bytes: int = 0
    peak_entries: int = 0
    peak_bytes: int = 0
    chains: list[Residency] = field(default_factory=list)

    @property
    def heads(self) -> int:
        return self.layers * self.kv_heads

    @property
    def mean(self) -> Fraction:
        """C_x: mean resident bytes per layer and KV head, in full-precision entries (methods.md §4). A trial that
        ended on its first token took no decode step; it counts with its prompt."""
        if self.steps == 0:
            return Fraction(self.prompt_tokens * max(1, len(self.chains)))
        return Fraction(self.payload_bytes + self.aux_bytes, self.steps * self.heads * self.entry_bytes)

    @property
    def peak(self) -> Fraction:
        """Largest resident bytes of any decode step per layer and KV head, in full-precision entries."""
        return Fraction(self.peak_bytes, self.heads * self.entry_bytes)

    @property
    def active(self) -> bool:
        """Whether anything was ever compressed."""
        return bool(self.events) or any(chain.active for chain in self.chains)

    def spans(self) -> list[tuple[int, int]]:
        """(entries before, steps) of each stretch of growth between events. Raises ValueError when the events
        contradict a growth of one entry per head and step."""
        out, step, resident = [], 0, self.prompt_tokens * self.heads
        for t, before, after in [*self.events, (self.steps, None, None)]:
            if t < step or t > self.steps:
                raise ValueError(f"event at step {t} is out of order or beyond the last step {self.steps}")
            out.append((resident, t - step))
            resident, step = resident + (t - step) * self.heads, t
            if before is None:
                break
            if before != resident:
                raise ValueError(f"event at step {t} starts from {before} entries, but {resident} were resident")
            if not 0 <= after <= before or after % self.heads:
                raise ValueError(f"event at step {t} leaves {after} of {before} entries")
            resident = after
        return out

    def settle(self, footprint: Footprint) -> Residency:
        """Fill in the sums and peaks that follow from prompt, steps and events. Raises ValueError as `spans`."""
        entries = payload = peak = most = 0
        for start, steps in self.spans():
            first, last = start // self.heads, start // self.heads + steps
            entries += self.heads * (_triangle(last) - _triangle(first))
            payload += _payload(footprint, last) - _payload(footprint, first)
            if steps:
                peak, most = max(peak, last * self.heads), max(most, footprint.total(last))
        self.entries, self.payload_bytes, self.peak_entries, self.peak_bytes = entries, payload, peak, most
        per_entry = footprint.heads * footprint.trait_bytes + footprint.shared_bytes
        self.aux_bytes = entries // self.heads * per_entry + self.steps * footprint.fixed_bytes
        return self

    def to_json(self) -> dict[str, Any]:
        out = asdict(self)
        out["events"] = [list(e) for e in self.events]
        out["chains"] = [c.to_json() for c in self.chains]
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Residency:
        data = dict(data)
        data["events"] = [tuple(e) for e in data["events"]]
        data["chains"] = [cls.from_json(c) for c in data.get("chains", [])]
        return cls(**data)


def walk(
    schedule: Schedule, footprint: Footprint, prompt_tokens: int, steps: int, layers: int, tokens: Sequence[int] = ()
) -> Residency:
    """The account that one chain must leave behind, without running a model. `tokens` are the output's ids, which a
    schedule with boundaries looks at: tokens[t - 1] is what step t reads."""
    heads = footprint.heads
    events = [
        (t, n * heads, done.resident * heads) for t, n, done in happenings(schedule, prompt_tokens, steps, tokens)
    ]
    kv_heads = heads // layers
    return Residency(layers, kv_heads, footprint.entry_bytes, prompt_tokens, steps, events).settle(footprint)


def happenings(
    schedule: Schedule, prompt_tokens: int, steps: int, tokens: Sequence[int] = ()
) -> list[tuple[int, int, Event]]:
    """(step, entries per head before, event) of every event in `steps` decode steps; step 0 is the bare prompt."""
    book, out = Book(schedule, prompt_tokens), []
    if schedule.compresses_prompt(prompt_tokens):
        out.append((0, book.resident, book.fire()))
    ends = {t for t, token in enumerate(tokens[:steps], 1) if token in schedule.boundaries}
    while (wait := book.wait()) is not None:
        step = book.position - prompt_tokens
        if schedule.trigger == "boundary":
            chance = schedule.first_chance(book.resident, book.prefix, prompt_tokens)
            wait = next((w for w in range(chance, wait) if step + w in ends), wait)
        if step + wait > steps:
            break
        book.grow(wait)
        before = book.resident
        out.append((step + wait, before, book.fire()))
    return out


def join(accounts: Sequence[Residency], footprint: Footprint) -> Residency:
    """The account of chains that run side by side: sums over the chains alive at each step; a finished chain holds
    nothing, and the trial is as long as its longest chain (methods.md §4, M5)."""
    first, steps = accounts[0], max(a.steps for a in accounts)
    # The sum over live chains is largest just before some chain has an event or ends.
    marks = sorted({t for a in accounts for t in (*(e[0] for e in a.events), a.steps) if t > 0})
    held = [[n for a in accounts if (n := _resident(a, t))] for t in marks]
    return Residency(
        first.layers,
        first.kv_heads,
        first.entry_bytes,
        first.prompt_tokens,
        steps,
        entries=sum(a.entries for a in accounts),
        payload_bytes=sum(a.payload_bytes for a in accounts),
        aux_bytes=sum(a.aux_bytes for a in accounts),
        peak_entries=max(map(sum, held), default=0),
        peak_bytes=max((sum(footprint.total(n // first.heads) for n in row) for row in held), default=0),
        chains=list(accounts),
    )


def _resident(account: Residency, step: int) -> int:
    """Entries that step `step` reads; 0 after the end."""
    if step > account.steps:
        return 0
    last = max((e for e in account.events if e[0] < step), key=lambda e: e[0], default=None)
    start, after = (last[0], last[2]) if last else (0, account.prompt_tokens * account.heads)
    return after + (step - start) * account.heads


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@lru_cache(maxsize=4096)
def _payload(footprint: Footprint, resident: int) -> int:
    """Payload bytes summed over reads of 1 … resident entries."""
    if footprint.packing is None:
        return footprint.heads * footprint.entry_bytes * _triangle(resident)
    return _table(footprint, -(-resident // 4096) * 4096)[resident]


@lru_cache(maxsize=64)
def _table(footprint: Footprint, size: int) -> list[int]:
    out = [0]
    for n in range(1, size + 1):
        out.append(out[-1] + footprint.payload(n))
    return out
