"""What stayed in the cache of one trial and for how long, exactly (docs/DEFINITIONS.md §1).

An *entry* is one key/value pair of one layer and KV head. Counts here are entries summed over layers and KV heads
unless a name says otherwise. Step t = 1 … T is the decode forward that consumes the t-th output token; the forward
over the prompt is step 0 and is not averaged. Counts are taken when step t's attention reads the cache: after the
append, before any event at t.

No torch and no pydantic here: the engine, the solver and the verifier share this file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from cask_eval.footprint import Footprint, triangle
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
        """C: mean resident bytes per layer and KV head, in full-precision entries (docs/DEFINITIONS.md §1). A trial
        that ended on its first token took no decode step; it counts with its prompt."""
        if self.steps == 0:
            return Fraction(self.prompt_tokens * max(1, len(self.chains)))
        return Fraction(self.payload_bytes + self.aux_bytes, self.steps * self.heads * self.entry_bytes)

    @property
    def peak(self) -> Fraction:
        """Largest resident bytes of any decode step per layer and KV head, in full-precision entries."""
        return Fraction(self.peak_bytes, self.heads * self.entry_bytes)

    @property
    def active(self) -> bool:
        """Whether anything was ever compressed: by an event, or by being stored in fewer bytes."""
        packed = self.payload_bytes < self.entries * self.entry_bytes
        return packed or bool(self.events) or any(chain.active for chain in self.chains)

    def spans(self) -> list[tuple[int, int]]:
        """(entries before, steps) of each stretch of growth between events. Raises ValueError when the events
        contradict a growth of one entry per head and step, or do not shrink the cache."""
        out, step, resident, last = [], 0, self.prompt_tokens * self.heads, -1
        for t, before, after in self.events:
            if not last < t <= self.steps:
                raise ValueError(f"event at step {t} is out of order or beyond the last step {self.steps}")
            out.append((resident, t - step))
            resident += (t - step) * self.heads
            if before != resident:
                raise ValueError(f"event at step {t} starts from {before} entries, but {resident} were resident")
            if not 0 < after < before or after % self.heads:
                raise ValueError(f"event at step {t} leaves {after} of {before} entries")
            resident, step, last = after, t, t
        return [*out, (resident, self.steps - step)]

    def settle(self, footprint: Footprint) -> Residency:
        """Fill in the sums and peaks that follow from prompt, steps and events. Raises ValueError as `spans`, and when
        the footprint is of another model."""
        if (self.heads, self.entry_bytes) != (footprint.heads, footprint.entry_bytes):
            raise ValueError(
                f"{self.heads} heads with entries of {self.entry_bytes} bytes are accounted for, but the model has "
                f"{footprint.heads} with {footprint.entry_bytes}"
            )
        entries = payload = peak = most = 0
        for start, steps in self.spans():
            if not steps:
                continue
            first, last = start // self.heads, start // self.heads + steps
            entries += triangle(last) - triangle(first)
            payload += footprint.payload_through(last) - footprint.payload_through(first)
            peak, most = max(peak, last), max(most, footprint.total(last))
            if (crest := footprint.crest(last)) > first:
                most = max(most, footprint.total(crest))
        self.entries, self.peak_entries = entries * self.heads, peak * self.heads
        self.payload_bytes, self.aux_bytes = payload, footprint.auxiliary_over(entries, self.steps)
        self.peak_bytes = most
        return self

    def again(self, footprint: Footprint) -> Residency:
        """The account that prompt, steps and events give, whatever this one states; an honest one equals it. Raises
        ValueError as `settle`."""
        if self.chains:
            return join([chain.again(footprint) for chain in self.chains], footprint)
        bare = Residency(self.layers, self.kv_heads, self.entry_bytes, self.prompt_tokens, self.steps, self.events)
        return bare.settle(footprint)

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
            wait = next((w for w in range(chance, min(wait, steps - step + 1)) if step + w in ends), wait)
        if step + wait > steps:
            break
        book.grow(wait)
        before = book.resident
        out.append((step + wait, before, book.fire()))
    return out


def expected(
    schedule: Schedule, footprint: Footprint, prompt_tokens: int, outputs: Sequence[Sequence[int]], layers: int
) -> Residency:
    """The account of a trial whose chains put out these token ids; most methods have one chain. Raises ValueError when
    the schedule has another number of chains."""
    parts = schedule.split()
    accounts = [
        walk(part, footprint, prompt_tokens, max(0, len(ids) - 1), layers, ids)
        for part, ids in zip(parts, outputs, strict=True)
    ]
    return accounts[0] if len(accounts) == 1 else join(accounts, footprint)


def join(accounts: Sequence[Residency], footprint: Footprint) -> Residency:
    """The account of chains that run side by side: sums over the chains alive at each step; a finished chain holds
    nothing, and the trial is as long as its longest chain (docs/DEFINITIONS.md §1)."""
    first, lines = accounts[0], [_Line(a) for a in accounts]
    cuts = sorted({t for line in lines for t in line.cuts if t > 0})
    most = peak = 0
    for before, cut in zip([0, *cuts], cuts, strict=False):
        held = [n for line in lines if (n := line.read(cut))]
        peak = max(peak, sum(held) * first.heads)
        # Between cuts every chain grows, so the sum is largest at the end, or just before some chain packs its keys.
        crests = {cut - (n - footprint.crest(n)) for n in held}
        for t in {cut, *(t for t in crests if t > before)}:
            most = max(most, sum(footprint.total(n) for line in lines if (n := line.read(t))))
    return Residency(
        first.layers,
        first.kv_heads,
        first.entry_bytes,
        first.prompt_tokens,
        max(a.steps for a in accounts),
        entries=sum(a.entries for a in accounts),
        payload_bytes=sum(a.payload_bytes for a in accounts),
        aux_bytes=sum(a.aux_bytes for a in accounts),
        peak_entries=peak,
        peak_bytes=most,
        chains=list(accounts),
    )


class _Line:
    """What each step of one chain reads, per head."""

    def __init__(self, account: Residency):
        self.steps, self.starts, self.levels, step = account.steps, [], [], 0
        for level, length in account.spans():
            self.starts.append(step)
            self.levels.append(level // account.heads)
            step += length
        self.cuts = [*self.starts, self.steps]

    def read(self, step: int) -> int:
        """Entries that step `step` ≥ 1 reads; 0 after the end."""
        if step > self.steps:
            return 0
        at = bisect_left(self.starts, step) - 1
        return self.levels[at] + step - self.starts[at]
