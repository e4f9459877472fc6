"""What stays in the cache and for how long, in integers (spec: methods.md §4).

An *entry* is one key/value pair of one layer and KV head. Counts here are entries summed over layers and KV
heads unless a name says otherwise. Step t = 1 … T is the decode forward that consumes the t-th output token;
the forward over the prompt is step 0 and is not averaged. Counts are taken when step t's attention reads the
cache: after the append, before any event at t.

No torch and no pydantic here: the engine, the solver and the verifier share this file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

TRIGGERS = ("never", "slack", "periodic", "every_step")
PROMPTS = ("pinned", "outside", "compete")


@dataclass(frozen=True)
class Schedule:
    """When a length-driven policy fires and how many entries per layer and head it leaves.

    trigger: ``never``; ``slack`` fires at target + delta; ``periodic`` fires above target when the logical length
        is a multiple of delta; ``every_step`` fires above target.
    budget: the nominal budget b. delta: steps between events.
    prompt: ``pinned`` keeps the prompt inside the budget (an event leaves b entries, prompt included);
        ``outside`` keeps it on top of the budget (an event leaves prompt + b); ``compete`` protects no prompt
        entry, and a prompt that is long enough is compressed before the first decode step.
    """

    trigger: str
    budget: int
    delta: int
    prompt: str

    def __post_init__(self):
        if self.trigger not in TRIGGERS:
            raise ValueError(f"trigger is {self.trigger!r}; use one of {', '.join(TRIGGERS)}")
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt is {self.prompt!r}; use one of {', '.join(PROMPTS)}")
        if self.budget < 1 or self.delta < 1:
            raise ValueError(f"budget {self.budget} and delta {self.delta} must both be at least 1")

    def target(self, prompt_tokens: int) -> int:
        """Entries per layer and head after an event."""
        return self.budget + prompt_tokens if self.prompt == "outside" else self.budget

    def fires(self, resident: int, prompt_tokens: int, position: int) -> bool:
        """Whether an event follows the forward that left `resident` entries per head after `position` tokens."""
        target = self.target(prompt_tokens)
        if self.trigger == "slack":
            return resident >= target + self.delta
        if self.trigger == "periodic":
            return resident > target and position % self.delta == 0
        return self.trigger == "every_step" and resident > target

    def next_event(self, resident: int, prompt_tokens: int, position: int) -> int | None:
        """Number of further tokens (≥ 1) until the next event, None if there is none ever."""
        gap = self.target(prompt_tokens) - resident
        if self.trigger == "slack":
            return max(1, gap + self.delta)
        if self.trigger == "periodic":
            first = max(1, gap + 1)
            return first + (-(position + first)) % self.delta
        return max(1, gap + 1) if self.trigger == "every_step" else None

    def capacity(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """Most entries per layer and head that any decode step can need."""
        longest = prompt_tokens + max(0, max_new_tokens - 1)
        if self.trigger == "never":
            return longest
        target = self.target(prompt_tokens)
        reach = {"slack": self.delta, "periodic": self.delta, "every_step": 1}[self.trigger]
        start = prompt_tokens if not self.fires(prompt_tokens, prompt_tokens, prompt_tokens) else target
        return min(longest, max(target + reach, start + reach))


@dataclass
class Residency:
    """The exact account of one trial.

    events: (step, before, after) in entries summed over layers and heads; step 0 is an event on the bare prompt.
    entries, payload_bytes, aux_bytes: sums over the decode steps. peak_entries: the largest count of any step.
    entry_bytes: bytes of one full-precision entry, (d_k + d_v)·w.
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

    @property
    def heads(self) -> int:
        return self.layers * self.kv_heads

    @property
    def mean(self) -> Fraction:
        """C_x: mean resident entries per layer and KV head (methods.md §4). A trial that ended on its first token
        took no decode step; it counts with its prompt."""
        if self.steps == 0:
            return Fraction(self.prompt_tokens)
        return Fraction(self.payload_bytes + self.aux_bytes, self.steps * self.heads * self.entry_bytes)

    @property
    def peak(self) -> Fraction:
        """Largest resident count of any decode step, per layer and KV head."""
        return Fraction(self.peak_entries, self.heads)

    def tally(self) -> tuple[int, int]:
        """(entries, peak_entries) recomputed from prompt, steps and events alone. Raises ValueError when the
        events contradict the growth of one entry per head and step."""
        total, peak, step, resident = 0, 0, 0, self.prompt_tokens * self.heads
        for t, before, after in [*self.events, (self.steps, None, None)]:
            if t < step or t > self.steps:
                raise ValueError(f"event at step {t} is out of order or beyond the last step {self.steps}")
            grown = t - step
            total += grown * resident + self.heads * grown * (grown + 1) // 2
            resident += grown * self.heads
            peak = max(peak, resident if grown else 0)
            step = t
            if before is None:
                break
            if before != resident:
                raise ValueError(f"event at step {t} starts from {before} entries, but {resident} were resident")
            if not 0 <= after <= before:
                raise ValueError(f"event at step {t} leaves {after} of {before} entries")
            resident = after
        return total, peak

    def to_json(self) -> dict[str, Any]:
        out = asdict(self)
        out["events"] = [list(e) for e in self.events]
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Residency:
        data = dict(data)
        data["events"] = [tuple(e) for e in data["events"]]
        return cls(**data)


def walk(
    schedule: Schedule, prompt_tokens: int, steps: int, *, layers: int = 1, kv_heads: int = 1, entry_bytes: int = 1
) -> Residency:
    """The account a length-driven, full-precision policy must leave behind, without running a model."""
    heads = layers * kv_heads
    out = Residency(layers, kv_heads, entry_bytes, prompt_tokens, steps)
    resident, target = prompt_tokens, schedule.target(prompt_tokens)
    step = 0
    if schedule.prompt == "compete" and schedule.fires(resident, prompt_tokens, prompt_tokens):
        out.events.append((0, resident * heads, target * heads))
        resident = target
    while True:
        wait = schedule.next_event(resident, prompt_tokens, prompt_tokens + step)
        if wait is None or step + wait > steps:
            break
        step, resident = step + wait, resident + wait
        out.events.append((step, resident * heads, target * heads))
        resident = target
    out.entries, out.peak_entries = out.tally()
    out.payload_bytes = out.entries * entry_bytes
    return out
