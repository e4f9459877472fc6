"""What a method sees and what its parts answer. Tensors only; no hooks, no model.

Shapes: L layers, R sequences that compress at the same moment, H KV heads, n resident entries, D head dimension,
G query heads per KV head, Hq = H·G query heads, W remembered queries, F = D/2 rotary frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cask_eval.errors import MethodError


@dataclass(frozen=True)
class Geometry:
    """The model, as far as a method may know it.

    inv_freq: [F] fp64, the rotary module's own frequencies. scaling: the rotary attention_scaling s that
    multiplies every rotated query and key.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    inv_freq: Tensor
    scaling: float
    dtype: torch.dtype
    name: str = ""

    @property
    def groups(self) -> int:
        return self.query_heads // self.kv_heads

    @property
    def entry_bytes(self) -> int:
        """Bytes of one full-precision key and value of one KV head."""
        return 2 * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Host:
    """The model a method is bound to. calibration: a statistics file, or None. encode: text → token ids without
    special tokens, or None where no tokenizer is at hand."""

    geometry: Geometry
    calibration: str | None = None
    encode: Callable[[str], list[int]] | None = None


@dataclass(frozen=True)
class Trait:
    """A number that a part remembers about every resident entry between events. It follows the entry when the cache
    is compacted. start: its value for a new entry. shared: one value for all layers and heads of a token, which then
    must be kept or evicted together."""

    dtype: torch.dtype = torch.float32
    start: float = 0.0
    shared: bool = False


@dataclass(frozen=True)
class Needs:
    """What a part asks the engine to remember. All of it is charged to the method's cache.

    queries: the newest W queries of every query head, as the attention saw them (rotated at their own positions).
    traits: name → `Trait`. bias: name of the trait that is added to every attention logit of its entry (log mass).
    mass: name of the trait that says how many tokens an entry stands for, where entries are merged.
    """

    queries: int = 0
    traits: Mapping[str, Trait] = field(default_factory=dict)
    bias: str = ""
    mass: str = ""

    def __or__(self, other: Needs) -> Needs:
        """Both. Raises MethodError when they disagree on the bias, or ask for a trait of one name without meaning it:
        parts that share a trait share the `Trait` object."""
        if clash := [k for k in self.traits.keys() & other.traits.keys() if self.traits[k] is not other.traits[k]]:
            raise MethodError(
                f"two parts of the method ask for a trait called {', '.join(sorted(clash))}; give each its own name, "
                "or declare one Trait that both import"
            )
        if self.bias and other.bias and self.bias != other.bias:
            raise MethodError(f"two parts of the method bias the attention, by {self.bias} and by {other.bias}")
        if self.mass and other.mass and self.mass != other.mass:
            raise MethodError(f"two parts of the method count an entry's tokens, in {self.mass} and in {other.mass}")
        traits, bias = {**self.traits, **other.traits}, self.bias or other.bias
        return Needs(max(self.queries, other.queries), traits, bias, self.mass or other.mass)


@dataclass(frozen=True)
class Entries:
    """The resident entries of R sequences just before an event.

    keys, values: [L, R, H, n, D]; keys are rotated at their logical positions. positions: [L, R, H, n] int64
    logical positions, ascending along n, then -1 where a shorter sequence or head has no entry. prompt_tokens,
    length, seeds, events: [R] int64: prompt length, tokens processed so far (the next logical position), the
    trial's random key, and how many events the trial has had. prefix, prefix_kept: [R] int64, how many leading
    entries the schedule counts as prompt before the event, and how many of those it leaves. target: [R] int64, how
    many entries the event leaves per head; set by `Policy.compress`.

    queries: [L, R, Hq, W, D], the newest queries rotated at query_positions [R, W] int64, oldest first, -1 (at the
    front) where there were fewer; None unless a part needs them. traits: name → [L, R, H, n], or [1, R, 1, n] for a
    shared trait. bias: name of the trait that the attention adds to every logit of an entry, or "". tokens: [R, N]
    int64, the sequence's token ids by logical position, -1 beyond its length.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    prompt_tokens: Tensor
    length: Tensor
    seeds: Tensor
    events: Tensor
    geometry: Geometry
    prefix: Tensor | None = None
    prefix_kept: Tensor | None = None
    queries: Tensor | None = None
    query_positions: Tensor | None = None
    traits: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    bias: str = ""
    target: Tensor | None = None

    @property
    def resident(self) -> Tensor:
        """[L, R, H, n] bool: the entries that exist."""
        return self.positions >= 0

    def rows(self, at: Tensor | slice) -> Entries:
        """The same for some of the sequences."""
        second = ("keys", "values", "positions", "queries")
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                out[f.name] = value[:, at] if f.name in second else value[at]
        return replace(self, **out, traits={k: v[:, at] for k, v in self.traits.items()})


@dataclass(frozen=True)
class Selection:
    """What an event keeps.

    keep: [L or 1, R, H or 1, n] bool. into: same shape, int64: the index of the kept entry that each entry is merged
    into (its own where it is kept), -1 where it is evicted; None when nothing is merged. traits: new values of
    traits, by name, for every entry. notes: like traits, but nobody's need: the representation finds them among the
    entries' traits, and then they are forgotten. measures: name → [R] floating: numbers a report should show, averaged over a
    trial's events.
    """

    keep: Tensor
    into: Tensor | None = None
    traits: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    measures: Mapping[str, Tensor] = field(default_factory=dict)


class Scorer(Protocol):
    """How much is each resident entry worth?

    A scorer, like every part, may have `needs: Needs`, `bind(host)` (returns the part bound to a model) and
    `calibrated = True` (it reads `Host.calibration`)."""

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L or 1, R, H or 1, n], fp32, higher is kept. A layer or head axis of size 1 says that the
        decision is shared over layers or heads. `candidates` [L, R, H, n] bool marks the entries that compete;
        what stands elsewhere is ignored, but must not be NaN."""
        ...


class Observer(Protocol):
    """A scorer or selector that follows every attention read, for what cannot be computed at events alone. The engine
    tells the method's own parts; a part that holds an observer must be one, and pass on what it sees."""

    def observe(self, layer: int, attention: Tensor, traits: Mapping[str, Tensor], positions: Tensor) -> None:
        """Update `traits` (name → [B, H, C], views of the cache's storage) in place from `attention`
        [B, H, G, q, C] fp32, the probabilities of q queries over C entries; `positions` [B, q] int64 are the queries'
        logical positions, -1 for a query that does not exist. Called at every decode step with q = 1, and for
        prompts and for given tokens with many, possibly in several pieces, in the order of the positions."""
        ...


class Selector(Protocol):
    """Which set do we keep, given scores? May have `needs` and `bind(host)`."""

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Selection:
        """`Selection.keep` is a subset of `candidates` with exactly `quota` [L or 1, R, H or 1] entries a row. No row's
        quota exceeds its candidates. It has the shape of `scores`, or is wider: a selector may decide per layer and
        head from shared scores."""
        ...


class Allocation(Protocol):
    """How is the budget shared over layers and heads? May have `needs` and `bind(host)`."""

    def allocate(self, scores: Tensor, candidates: Tensor, protected: Tensor, target: Tensor) -> Tensor:
        """Quotas [L or 1, R, H or 1] int64: how many of the `candidates` each layer and head keeps besides what is
        `protected` (both of the shape of `scores`). Over all layers and heads of a row, quotas and protected entries
        sum to `target` [R] times their number; no quota is negative or exceeds its candidates. Raises MethodError
        when that is impossible."""
        ...


class Representation(Protocol):
    """What remains of what is not kept, and in what form? May have `needs` and `bind(host)`."""

    def represent(self, entries: Entries, selection: Selection) -> tuple[Entries, Mapping[str, Tensor]]:
        """The entries with what is kept put into its new form (other keys, values, positions or traits at the kept
        indices; the number of entries stays n), and measures as in `Selection`. `selection.keep` is [L, R, H, n] and
        holds the protected entries too; traits of the selection are in `entries` already."""
        ...


@dataclass(frozen=True)
class Compressed:
    """An event's outcome: the `entries` in their new form, of which those under `keep` [L, R, H, n] stay."""

    keep: Tensor
    entries: Entries
    measures: Mapping[str, Tensor] = field(default_factory=dict)


def needs_of(*parts: Any) -> Needs:
    """What several parts need together. Raises MethodError when they contradict each other."""
    total = Needs()
    for part in parts:
        total = total | getattr(part, "needs", Needs())
    return total


def inner(part: Any) -> Iterator[Any]:
    """The parts that a part is made of, at any depth: dataclasses in the fields of dataclasses."""
    if is_dataclass(part):
        for f in fields(part):
            value = getattr(part, f.name)
            if is_dataclass(value) and not isinstance(value, type):
                yield value
                yield from inner(value)


def bound(part: Any, host: Host) -> Any:
    """The part bound to a model, where it has something to bind."""
    return part.bind(host) if hasattr(part, "bind") else part
