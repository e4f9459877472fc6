"""Stage two of CASK: the generated entries that compete for slots, as a protected core and folded runs beside it
(docs/DEFINITIONS.md §6)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cask_eval.engine.contract import Entries
from cask_methods.rotary import unrotate
from cask_methods.selectors import core as cores
from cask_methods.selectors.runs import Descriptors, Rule, Scratch, merge_adjacent
from cask_methods.selectors.top_k import highest


def supports(scores: Tensor) -> Tensor:
    """σ = softplus(s) + 1e-4, fp64."""
    return softplus(scores.double()) + 1e-4


@dataclass(frozen=True)
class Pool:
    """The candidates of R sequences, M at most: those of a row are its entries first … first + count − 1.

    entries: as a method sees them, with n = M, but with values of no width; where a row has fewer, they repeat its
    first. values: [L, R, H, M, D], or None unless asked for. valid: [R, M] bool. scores: [R, M] fp32. mass: [R, M]
    fp64, support times the tokens an entry stands for. low, high: [R, M] int64, the positions it stands for. slots:
    [R] ≥ 2, how many may stay; every row has more candidates.
    """

    entries: Entries
    first: Tensor
    valid: Tensor
    scores: Tensor
    mass: Tensor
    low: Tensor
    high: Tensor
    slots: Tensor
    values: Tensor | None = None

    @classmethod
    def of(
        cls,
        entries: Entries,
        scores: Tensor,
        first: Tensor,
        count: Tensor,
        slots: Tensor,
        *,
        with_values: bool = False,
    ) -> Pool:
        """entries: of R sequences. scores: [R, n]. first, count, slots: [R]. Traits ``count``, ``span_low`` and
        ``span_high`` are read where they are kept."""
        offset = torch.arange(int(count.max()), device=count.device)
        valid = offset < count[:, None]
        at = first[:, None] + torch.where(valid, offset, 0)
        layers, _, heads, _, dim = entries.keys.shape
        every = at[None, :, None].expand(layers, -1, heads, -1)
        wide = every.unsqueeze(-1).expand(*every.shape, dim)
        positions = entries.positions.gather(-1, every)

        def trait(name: str, otherwise: Tensor) -> Tensor:
            held = entries.traits.get(name)
            return otherwise if held is None else held[0, :, 0].gather(-1, at).long()

        own, s = positions[0, :, 0], scores.gather(-1, at).masked_fill(~valid, 0)
        low, high = (trait(name, own) for name in ("span_low", "span_high"))
        mass = (supports(s) * trait("count", torch.ones_like(own))).masked_fill(~valid, 0)
        window = Entries(
            entries.keys.gather(3, wide),
            entries.values[:, :, :, : at.shape[1], :0],
            positions,
            entries.prompt_tokens,
            entries.length,
            entries.seeds,
            entries.events,
            entries.geometry,
            tokens=entries.tokens,
        )
        low, high = torch.where(low < 0, own, low), torch.where(high < 0, own, high)
        values = entries.values.gather(3, wide) if with_values else None
        return cls(window, first, valid, s, mass, low, high, slots, values)

    @property
    def count(self) -> Tensor:
        return self.valid.sum(-1)

    @property
    def index(self) -> Tensor:
        """[M]: numbers of the candidates within the window."""
        return torch.arange(self.valid.shape[1], device=self.valid.device)

    def best(self) -> Tensor:
        """[R, M] bool: as many of the highest scores as there are slots."""
        return highest(self.scores, self.valid, self.slots)

    def directions(self) -> Tensor:
        """[R, M, D]: mean un-rotated unit keys. Rotation is the same in all heads at one position and keeps lengths, so
        the mean of the unit keys is un-rotated, instead of every key."""
        total = 0
        for keys in self.entries.keys:
            keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
            size = torch.linalg.vector_norm(keys, dim=-1, keepdim=True)
            # One head after the other: a sum over heads could depend on how many sequences there are.
            for unit in (keys / torch.where(size > 0, size, 1)).unbind(1):
                total = total + unit
        mean = total / (self.entries.keys.shape[0] * self.entries.keys.shape[2])
        return unrotate(mean, self.entries.positions[0, :, 0], self.entries.geometry)

    def on_host(self) -> tuple[Pool, Scratch]:
        """The pool with its numbers on the host, entries and values left where they are; and what merging looks at,
        on the host. Raises FloatingPointError when keys are not finite."""
        direction = self.directions().cpu()
        if not bool(torch.isfinite(direction).all()):
            raise FloatingPointError("two-stage selection met keys that are not finite")
        names = ("first", "valid", "scores", "mass", "low", "high", "slots")
        moved = transferred("cpu", *(getattr(self, name) for name in names))
        pool = replace(self, **dict(zip(names, moved, strict=True)))
        values = None if self.values is None else self.values.float().movedim((0, 2), (2, 3)).flatten(2, 3).cpu()
        return pool, Scratch(direction, pool.mass, pool.scores.double(), pool.low, pool.high, values)

    def spread(self, x: Tensor, over: Tensor) -> Tensor:
        """`over` [R, n] with the values `x` [R, M] at the candidates."""
        spare = torch.cat([over, over[:, :1]], -1)
        spot = torch.where(self.valid, self.first[:, None] + self.index, over.shape[1])
        return spare.scatter(-1, spot, x.to(over.dtype))[:, :-1]


@dataclass(frozen=True)
class Outcome:
    """core, kept: [R, M] bool. into: [R, M] int64, the kept candidate that each becomes part of, -1 where it is
    evicted. wanted: [R], the core's size before any demotion. low, high: [R, M], spans afterwards."""

    core: Tensor
    kept: Tensor
    into: Tensor
    wanted: Tensor
    low: Tensor
    high: Tensor


def keep_best(pool: Pool, order: Tensor, wanted: Tensor) -> Outcome:
    """The core, and the best scores beside it; nothing is merged."""
    core = _first(order, wanted)
    kept = core | highest(pool.scores, pool.valid & ~core, pool.slots - wanted)
    return Outcome(core, kept, torch.where(kept, pool.index, -1), wanted, pool.low, pool.high)


@dataclass(frozen=True)
class Folding:
    """How runs are folded: parameters of `two_stage.TwoStage`. local_window: None where neighbours always adjoin.
    least_cosine: that may merge, or -inf."""

    core: str
    local_window: int | None
    gate: float
    distance: float
    least_cosine: float
    representative: str


def fold_runs(pool: Pool, order: Tensor, wanted: Tensor, same_phase: Tensor, how: Folding) -> Outcome:
    """The core, and descriptors of the runs beside it.

    order: [R, M] the core's ranking, of which it takes the `wanted` [R] first, fewer than there are slots. same_phase:
    [R, M] bool, whether a candidate and the next one lie in the same phase of the text. The pool has values where
    `how` has a distance. With vetoes every relaxation, demotions included, merges anew from single candidates. A core
    whose demotion would not make everything fit, because the least cosine or the distance forbids it, stays whole.
    """
    device = order.device
    # Many steps of little work each: on the host, where starting them costs nothing.
    pool, scratch = pool.on_host()
    order, wanted, same_phase = transferred("cpu", order, wanted, same_phase)
    gate = how.gate * pool.scores.double().masked_fill(~pool.best(), 0).sum(-1) / pool.slots
    fits, demotes = cores.room(order, pool.valid, pool.slots), how.core == "demote"
    member, link = _runs(pool, _first(order, wanted), same_phase)
    phased = member.sum(-1) - link.sum(-1) <= pool.slots - wanted
    size = torch.where(phased, wanted, cores.largest(fits, wanted)) if demotes else wanted
    # The core is touched only after the gate is gone.
    gated = (size == wanted) & bool(how.gate)
    demotable = (wanted > 0) & demotes
    while True:
        core = _first(order, size)
        member, link = _runs(pool, core, same_phase | ~phased[:, None])
        limit = torch.where(gated, gate, torch.inf) if how.gate else None
        merges = (member.sum(-1) - (pool.slots - size)).clamp_min(0)
        rule = Rule(how.local_window, limit, how.distance, how.least_cosine)
        done = merge_adjacent(scratch, member, link, merges, rule)
        # Without vetoes every merge is possible in as many runs as there are slots: nothing is left to relax.
        if not rule.vetoes:
            break
        stuck = done.short > 0
        unphase, ungate = stuck & phased, stuck & ~phased & gated
        demote = stuck & ~phased & ~gated & demotable
        if not bool((unphase | ungate | demote).any()):
            break
        phased, gated = phased & ~unphase, gated & ~ungate
        # Where giving up all of it is not enough, something is evicted either way, and the core stays whole.
        demotable = demotable & ~(demote & (size == 0))
        smaller = torch.where(demotable, cores.largest(fits, size - 1), wanted)
        size = torch.where(demote, smaller, size)
    into, low, high = _represent(pool, member, done, pool.slots - size, how.representative)
    into = torch.where(core, pool.index, into)
    return Outcome(*transferred(device, core, into == pool.index, into, wanted, low, high))


def _represent(
    pool: Pool, member: Tensor, done: Descriptors, room: Tensor, representative: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each member goes, [R, M], -1 for those of descriptors that are evicted because there are more than `room`
    [R]; and the spans, a descriptor's union at its representative."""
    stays = highest(done.mass, done.starts, torch.minimum(room, done.starts.sum(-1)))
    # Descriptors are intervals: a member's is the one that started last.
    start = torch.where(done.starts, pool.index, 0).cummax(-1).values
    eligible = member
    if representative == "score_max_source":
        score = pool.scores.masked_fill(~member, -torch.inf)
        best = torch.full_like(score, -torch.inf).scatter_reduce(-1, start, score, "amax")
        eligible = member & (score == best.gather(-1, start))
    last = torch.where(eligible, pool.index, -1)
    chosen = torch.full_like(last, -1).scatter_reduce(-1, start, last, "amax")
    into = torch.where(member & stays.gather(-1, start), chosen.gather(-1, start), -1)
    is_chosen = into == pool.index
    low, high = (
        torch.where(is_chosen, merged.gather(-1, start), own)
        for merged, own in ((done.low, pool.low), (done.high, pool.high))
    )
    return into, low, high


def _runs(pool: Pool, core: Tensor, together: Tensor) -> tuple[Tensor, Tensor]:
    """Which candidates are not core, and which of those belong to one run with the next one, [R, M] bool each."""
    member = pool.valid & ~core
    following = torch.cat([member[:, 1:], torch.zeros_like(member[:, :1])], -1)
    return member, member & following & together


def _first(order: Tensor, size: Tensor) -> Tensor:
    return cores.inverse(order) < size[:, None]


def transferred(device: torch.device | str, *tensors: Tensor) -> list[Tensor]:
    """Tensors [R, …] of numbers that fp64 can hold, on another device, by one transfer instead of many."""
    rows = len(tensors[0])
    packed = torch.cat([x.double().reshape(rows, -1) for x in tensors], 1).to(device)
    parts = packed.split([x[0].numel() for x in tensors], 1)
    return [part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, tensors, strict=True)]
