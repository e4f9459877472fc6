"""Pre-allocated cache slots with physical eviction.

One slot holds one sequence. Keys stay rotated at their logical positions, which lie beside them; -1 marks an
unused entry. Entries of a (slot, layer, head) always occupy a prefix of the capacity, in ascending logical order.
Whatever a method wants remembered (`contract.Needs`) lies beside the entries and moves with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from cask_eval.engine import kernels
from cask_eval.engine.contract import Entries, Geometry, Needs
from cask_eval.engine.packed import PackedStore
from cask_eval.engine.transfer import indices
from cask_eval.footprint import Packing

# Probabilities that an observer sees at once, in elements.
_CHUNK_ELEMENTS = 1 << 25


class SlotCache:
    """positions: [L, S, H, C] int64; fill: [L, S, H] int64 used entries; store: the keys and values [L, S, H, C, D];
    traits: name → [L, S, H, C], or [1, S, 1, C]; queries: [L, S, Hq, W, D] with query_positions [S, W]."""

    def __init__(
        self,
        geometry: Geometry,
        slots: int,
        capacity: int,
        device: torch.device | str,
        needs: Needs | None = None,
        packing: Packing | None = None,
        observers: Sequence[Any] = (),
    ):
        g = geometry
        self.geometry, self.slots, self.capacity = g, slots, capacity
        self.needs, self.observers = needs or Needs(), tuple(observers)
        self.store = PackedStore(g, slots, capacity, packing, device) if packing else _Full(g, slots, capacity, device)
        self.positions = torch.full((g.layers, slots, g.kv_heads, capacity), -1, dtype=torch.int64, device=device)
        self.fill = torch.zeros(g.layers, slots, g.kv_heads, dtype=torch.int64, device=device)
        self.traits = {
            name: torch.full(
                (1, slots, 1, capacity) if t.shared else (g.layers, slots, g.kv_heads, capacity),
                t.start,
                dtype=t.dtype,
                device=device,
            )
            for name, t in self.needs.traits.items()
        }
        w = self.needs.queries
        self.queries = torch.zeros(g.layers, slots, g.query_heads, w, g.head_dim, dtype=g.dtype, device=device)
        self.query_positions = torch.full((slots, w), -1, dtype=torch.int64, device=device)
        self.layers_view = Cache(layers=[_SlotLayer(self, i) for i in range(g.layers)])
        self._rows, self._width = slots, capacity
        self._position: Tensor | None = None  # [rows, q]: where the step's tokens stand, -1 for none
        self._moving: Tensor | None = None
        self._mask: Tensor | None = None
        self._block: _Block | None = None

    def reserve(self, capacity: int) -> None:
        """Make room for that many entries a head: uneven budgets give some heads more than the average."""
        if (more := capacity - self.capacity) <= 0:
            return
        self.positions = _widen(self.positions, more, -1)
        self.traits = {k: _widen(v, more, self.needs.traits[k].start) for k, v in self.traits.items()}
        self.store.reserve(capacity)
        self.capacity = capacity

    @property
    def slot_bytes(self) -> int:
        """Bytes allocated for one slot, whatever is used of them: the physical ledger, positions included."""
        whole = (self.positions, self.fill, self.queries, self.query_positions, *self.traits.values())
        return sum(x.numel() * x.element_size() for x in (*whole, *self.store.buffers)) // self.slots

    # -- a decode step -------------------------------------------------------------------------------------------

    def begin_step(
        self, rows: int, width: int, position: Tensor, moving: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reserve one entry in each of the first `rows` slots for the token at logical `position` [rows].

        `width` bounds the entries any row uses after the append. moving: [rows] bool, the slots that take the step;
        what is computed for the others leaves no trace, and may read and write beyond `width`. Returns what attention
        will read per row, counted from the storage itself: entries, summed over layers and heads, and all bytes held;
        [rows] int64 each.
        """
        self._rows, self._width, self._position, self._block = rows, width, position[:, None], None
        self._moving = moving
        fill = self.fill[:, :rows]
        self.positions[:, :rows].scatter_(-1, fill[..., None], position[None, :, None, None].expand(*fill.shape, 1))
        # An observer may have written where no entry was yet.
        for name, trait in self.needs.traits.items():
            at = fill[:1, :, :1] if trait.shared else fill
            self.traits[name][:, :rows].scatter_(-1, at[..., None], trait.start)
        visible = self.positions[:, :rows, :, :width] >= 0
        self._mask = visible[:, :, :, None]
        if self.needs.bias:
            self._mask = self._biased(slice(None), self._mask)
        if self.needs.queries:
            at = (position % self.needs.queries)[:, None]
            newest = position[:, None]
            if moving is not None:
                newest = torch.where(moving[:, None], newest, self.query_positions[:rows].gather(1, at))
            self.query_positions[:rows].scatter_(1, at, newest)
        counts = visible.sum((0, 2, 3))
        held = self.store.used_bytes(rows, counts) + self._fixed_bytes
        for name, trait in self.needs.traits.items():
            # A shared trait is held once for all layers and heads, which then hold the same tokens.
            held = held + self.traits[name].element_size() * (visible[0, :, 0].sum(-1) if trait.shared else counts)
        return counts, held

    def begin_block(
        self, fills: Sequence[int], counts: Sequence[int], width: int, position: Tensor, even: bool
    ) -> tuple[Tensor, Tensor]:
        """`begin_step` for several given tokens at once: `counts[i]` ≥ 1 in slot i, the first at logical `position[i]`,
        each of which will see those before it. The forward takes [rows, q] tokens, q = max(counts); what stands beyond
        a row's count is computed for nothing and leaves no trace.

        fills: entries per head before the append, on average over the heads. even: whether all heads of a row hold
        equally many. Returns entries and bytes as `begin_step`, summed over a row's tokens.
        """
        rows, most, device = len(counts), max(counts), position.device
        count = indices(counts, device)
        offset = torch.arange(most, device=device)
        real = offset < count[:, None]
        self._rows, self._width = rows, width
        self._position = (position[:, None] + offset).masked_fill(~real, -1)
        # A token that does not exist repeats the row's last one.
        source = offset.minimum(count[:, None] - 1)

        fill, column = self.fill[:, :rows], torch.arange(width, device=device)
        at = column - fill[..., None]
        start, end = position[None, :, None, None], (position + count)[None, :, None, None]
        new = (at >= 0) & (at < end - start)
        held = self.positions[:, :rows, :, :width]
        held.copy_(torch.where(new, start + at, held))
        for name, trait in self.needs.traits.items():
            values = self.traits[name][:, :rows, :, :width]
            values.masked_fill_(new[:1, :, :1] if trait.shared else new, trait.start)

        limit = fill[..., None] + 1 + source[None, :, None]
        self._mask = None
        packed = self.store.begin_block(fills, counts, source)
        if packed is not None:
            self._mask = packed.mask[:, None]
        elif even:
            self._mask = (column < limit[0, :, 0, :, None])[:, None]
        self._block = _Block(count, source, limit, packed.columns if packed else None, min(counts) < most)
        if w := self.needs.queries:
            self._block.ring, self._block.renewed = _newest(position, count, w)
            now = position[:, None] + self._block.ring
            self.query_positions[:rows] = torch.where(self._block.renewed, now, self.query_positions[:rows])

        # Every entry is read by the row's tokens that do not come before it.
        reads = (end - held.maximum(start)).masked_fill(held < 0, 0)
        total = reads.sum((0, 2, 3))
        size = self.store.block_bytes(total) + self._fixed_bytes * count
        for name, trait in self.needs.traits.items():
            size = size + self.traits[name].element_size() * (reads[0, :, 0].sum(-1) if trait.shared else total)
        return total, size

    @property
    def _fixed_bytes(self) -> int:
        return self.queries[:, 0].numel() * self.queries.element_size()

    def _biased(self, layer: int | slice, visible: Tensor) -> Tensor:
        """The bias of the entries of one or all layers where `visible` [..., rows, H or 1, q, C], -inf elsewhere."""
        trait = self.traits[self.needs.bias]
        bias = trait[layer if trait.shape[0] > 1 else slice(None) if isinstance(layer, slice) else 0]
        bias = bias[..., : self._rows, :, : self._width]
        if self._block and self._block.columns is not None:
            bias = bias.gather(-1, self._block.columns[:, None].expand(-1, bias.shape[1], -1))
        return torch.where(visible, bias.unsqueeze(-2), -torch.inf).to(self.geometry.dtype)

    def see(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Remember the newest of these queries [rows, Hq, q, D] and show their attention over `key` to the
        observers."""
        if w := self.needs.queries:
            ring = self.queries[layer, : self._rows]
            if self._block:
                at = self._block.ring.clamp_min(0)[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
                ring.copy_(torch.where(self._block.renewed[:, None, :, None], query.gather(2, at), ring))
            else:
                at, newest = (self._position % w).view(-1, 1, 1, 1).expand_as(query), query
                if self._moving is not None:
                    newest = torch.where(self._moving.view(-1, 1, 1, 1), query, ring.gather(2, at))
                ring.scatter_(2, at, newest)
        if self.observers:
            mask = self.mask(layer)
            traits = {k: v[layer, : self._rows, :, : self._width] for k, v in self._watched().items()}
            for part in _pieces(query, key.shape[2]):
                attention = _attention(query[:, :, part], key, mask[:, :, None, part], scaling)
                if self._block and self._block.columns is not None:
                    # One entry may stand in several columns, in each of them for other queries.
                    at = self._block.columns[:, None, None, None].expand_as(attention)
                    shape = (*attention.shape[:-1], self._width)
                    attention = attention.new_zeros(shape).scatter_add_(-1, at, attention)
                for observer in self.observers:
                    observer.observe(layer, attention, traits, self._position[:, part])

    def _watched(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.traits.items() if not self.needs.traits[k].shared}

    def mask(self, layer: int) -> Tensor:
        """[rows, H or 1, q, C]: which of the columns that `write` returned each query sees in `layer` (bool), or their
        bias and -inf elsewhere."""
        if not self._block:
            return self._mask[layer]
        mask = self._mask
        if mask is None:
            columns = torch.arange(self._width, device=self.fill.device)
            mask = columns < self._block.limit[layer][..., None]
        return self._biased(layer, mask) if self.needs.bias else mask

    def prefix(self, layer: int) -> tuple[Tensor, int] | None:
        """How many leading columns a step of one token sees in `layer`, as a number [rows, H] int64 and what is to be
        added to it; None where what it sees is no prefix. `mask` may add a bias to them."""
        if not self._block:
            return self.fill[layer, : self._rows], 1
        return None if self._block.columns is not None else (self._block.limit[layer, ..., 0], 0)

    def forget_step(self) -> None:
        """Let go of what the last step left."""
        self._position = self._moving = self._mask = self._block = None

    def advance(self, count: Tensor) -> None:
        """Take over `count` [rows] int64 of the entries that `begin_step` or `begin_block` reserved in each slot; what
        is not taken over will be written over."""
        self.fill[:, : self._rows] += count[:, None]

    def end_step(self, fills: Sequence[int]) -> None:
        """`fills`: entries per head of each row after the append, known to the host where all heads are alike."""
        if self._block:
            self.advance(self._block.count)
            self.store.end_block()
        else:
            self.fill[:, : self._rows] += 1
            self.store.settle(fills)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the step's entries ([rows, H, q, D]) in the reserved places; returns the layer's keys and values."""
        index = self.fill[layer, : self._rows]
        if not self._block:
            return self.store.append(layer, key, value, index, self._width)
        source = self._block.source[:, None]
        if self._block.ragged:
            at = source[..., None].expand_as(key)
            key, value = key.gather(2, at), value.gather(2, at)
        return self.store.append_block(layer, key, value, index[..., None] + source, self._width)

    # -- events --------------------------------------------------------------------------------------------------

    def place(self, slots: Tensor, entries: Entries, keep: Tensor, kept: int, counts: Sequence[int]) -> None:
        """Fill the given slots [R] with the entries that `keep` [L, R, H, n] marks, at most `kept` a head and on
        average `counts` of each row; whatever the slots held before is gone."""
        order = self._compacted(slots, entries, keep, kept) if kernels.use("compact", keep) else None
        if order is None:
            order = torch.sort(~keep, dim=-1, stable=True).indices[..., :kept]
            positions = entries.positions.gather(-1, order).masked_fill(~keep.gather(-1, order), -1)
            wide = order[..., None].expand(*order.shape, self.geometry.head_dim)
            self.store.place(slots, entries.keys.gather(3, wide), entries.values.gather(3, wide), counts)
            self.positions[:, slots, :, :kept] = positions
            self.positions[:, slots, :, kept:] = -1
            self.fill[:, slots] = (positions >= 0).sum(-1)
        elif self.needs.traits:
            positions = self.positions[:, slots, :, :kept]
        for name, trait in self.needs.traits.items():
            held, new = self.traits[name], entries.traits[name]
            at, real = (order[:1, :, :1], positions[:1, :, :1] >= 0) if trait.shared else (order, positions >= 0)
            moved = new.expand(*at.shape[:3], new.shape[-1]).gather(-1, at)
            held[:, slots] = trait.start
            held[:, slots, :, :kept] = torch.where(real, moved.to(held.dtype), held[:, slots, :, :kept])

    def _compacted(self, slots: Tensor, entries: Entries, keep: Tensor, kept: int) -> Tensor | None:
        """All of `place` but the traits, by a kernel: where each entry came from, [L, R, H, kept]. None where the
        kernel cannot do it."""
        from cask_eval.engine.kernels import compact  # with Triton

        store, new = self.store, (entries.keys, entries.values)
        if not isinstance(store, _Full) or not compact.takes(*new, *store.buffers):
            return None
        return compact.place(slots, *new, entries.positions, keep, kept, *store.buffers, self.positions, self.fill)

    def entries(self, slots: Tensor, width: int, **about: Tensor) -> Entries:
        """What the given slots [R] hold, as a method sees it. `about`: the other fields of `Entries`."""
        keys, values = self.store.read(slots, width)
        # Beyond what a head holds may stand what was reserved and not taken over.
        beyond = torch.arange(width, device=self.fill.device) >= self.fill[:, slots, :, None]
        queries = at = None
        if self.needs.queries:
            queries, at = _oldest_first(self.queries[:, slots], self.query_positions[slots])
        return Entries(
            keys=keys,
            values=values,
            positions=self.positions[:, slots, :, :width].masked_fill(beyond, -1),
            geometry=self.geometry,
            queries=queries,
            query_positions=at,
            traits={k: v[:, slots, :, :width] for k, v in self.traits.items()},
            bias=self.needs.bias,
            **about,
        )

    def remember(self, slots: Tensor, capture: CaptureCache) -> None:
        """Take over the newest queries of the prompts that were just read."""
        if self.needs.queries:
            self.queries[:, slots] = capture.queries
            self.query_positions[slots] = capture.query_positions

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`."""
        for buffer in (self.positions, self.fill, self.queries, *self.traits.values()):
            buffer[:, target] = buffer[:, source]
        self.query_positions[target] = self.query_positions[source]
        self.store.move(source, target)


@dataclass
class _Block:
    """The tokens of a step that takes several. count: [rows]. source: [rows, q], the row's token that stands for each.
    limit: [L, rows, H, q], how many leading entries each sees. columns: [rows, C], the entry that each column of the
    keys is, None where column i is entry i. ragged: whether rows have different counts. ring, renewed: [rows, W], the
    token whose query comes into each place of the ring, and whether one does."""

    count: Tensor
    source: Tensor
    limit: Tensor
    columns: Tensor | None
    ragged: bool
    ring: Tensor | None = None
    renewed: Tensor | None = None


class _Full:
    """Keys and values in full precision, [L, S, H, C, D]."""

    def __init__(self, geometry: Geometry, slots: int, capacity: int, device: torch.device | str):
        g = geometry
        self.keys = torch.zeros(g.layers, slots, g.kv_heads, capacity, g.head_dim, dtype=g.dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        return self.keys, self.values

    def reserve(self, capacity: int) -> None:
        more = capacity - self.keys.shape[3]
        self.keys, self.values = (
            torch.cat([x, x.new_zeros(*x.shape[:3], more, x.shape[4])], 3) for x in (self.keys, self.values)
        )

    def append(self, layer: int, key: Tensor, value: Tensor, index: Tensor, width: int) -> tuple[Tensor, Tensor]:
        at, rows = index[:, :, None, None].expand_as(key), key.shape[0]
        keys, values = self.keys[layer, :rows], self.values[layer, :rows]
        keys.scatter_(2, at, key)
        values.scatter_(2, at, value)
        return keys[:, :, :width], values[:, :, :width]

    def settle(self, fills: Sequence[int]) -> None:
        pass

    def begin_block(self, fills: Sequence[int], counts: Sequence[int], source: Tensor) -> None:
        return None

    def append_block(self, layer: int, key: Tensor, value: Tensor, index: Tensor, width: int) -> tuple[Tensor, Tensor]:
        at, rows = index[..., None].expand_as(key), key.shape[0]
        keys, values = self.keys[layer, :rows], self.values[layer, :rows]
        keys.scatter_(2, at, key)
        values.scatter_(2, at, value)
        return keys[:, :, :width], values[:, :, :width]

    def end_block(self) -> None:
        pass

    def block_bytes(self, reads: Tensor) -> Tensor:
        return self.used_bytes(0, reads)

    def place(self, slots: Tensor, keys: Tensor, values: Tensor, counts: Sequence[int]) -> None:
        self.keys[:, slots, :, : keys.shape[3]] = keys
        self.values[:, slots, :, : keys.shape[3]] = values

    def read(self, slots: Tensor, width: int) -> tuple[Tensor, Tensor]:
        return self.keys[:, slots, :, :width], self.values[:, slots, :, :width]

    def move(self, source: int, target: int) -> None:
        for buffer in self.buffers:
            buffer[:, target] = buffer[:, source]

    def used_bytes(self, rows: int, counts: Tensor) -> Tensor:
        return counts * (
            self.keys.shape[4] * self.keys.element_size() + self.values.shape[4] * self.values.element_size()
        )


class _SlotLayer(CacheLayerMixin):
    """One layer of a SlotCache, as transformers addresses it."""

    is_sliding = False

    def __init__(self, cache: SlotCache, layer: int):
        super().__init__()
        self.cache, self.layer, self.is_initialized = cache, layer, True

    def lazy_initialization(self, *_):
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        return self.cache.write(self.layer, key_states, value_states)

    # transformers asks for lengths only to build masks and positions; the engine supplies both itself.
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache._width, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.cache.capacity

    get_max_cache_shape = get_max_length


class CaptureCache:
    """Collects what forwards over prompts leave: keys and values [L, R, H, P, D], the newest queries [L, R, Hq, W, D]
    with query_positions [R, W], and traits [L, R, H, P] as the observers made them.

    lengths: [R] int64 prompt lengths; what lies behind a shorter prompt is not part of it.
    """

    def __init__(
        self, geometry: Geometry, lengths: Tensor, width: int, needs: Needs | None = None, observers: Sequence[Any] = ()
    ):
        g, rows, self.lengths = geometry, lengths.shape[0], lengths
        self.geometry, self.needs, self.observers = g, needs or Needs(), tuple(observers)
        w = self.needs.queries
        # Zero where a prompt has ended: what no query sees must still be finite, as nothing times NaN is NaN.
        self.keys = torch.zeros(g.layers, rows, g.kv_heads, width, g.head_dim, dtype=g.dtype, device=lengths.device)
        self.values = torch.zeros_like(self.keys)
        self.queries = self.keys.new_zeros(g.layers, rows, g.query_heads, w, g.head_dim)
        self.layers_view = Cache(layers=[_CaptureLayer(self, i) for i in range(g.layers)])
        self.positions = torch.arange(width, device=lengths.device).expand(rows, width)
        self.positions = self.positions.masked_fill(self.positions >= lengths[:, None], -1)
        self.traits = {
            name: torch.full(
                (1, rows, 1, width) if t.shared else (g.layers, rows, g.kv_heads, width),
                t.start,
                dtype=t.dtype,
                device=lengths.device,
            )
            for name, t in self.needs.traits.items()
        }
        # Position p lies at p mod W, as in the slots.
        slot = torch.arange(w, device=lengths.device)
        newest = lengths[:, None] - 1
        self.query_positions = newest - (newest - slot) % w if w else slot.expand(rows, 0)
        self.query_positions = self.query_positions.clamp_min(-1)
        self.begin(rows, 0, width)

    def begin(self, rows: int, start: int, stop: int) -> None:
        """The next forward takes tokens `start` … `stop` of the first `rows` prompts, all before having been read."""
        self.rows, self.part = rows, slice(start, stop)
        columns = torch.arange(stop, device=self.lengths.device)
        self._mask = (columns <= columns[self.part, None])[None, None] if start else None

    def mask(self, layer: int) -> Tensor | None:
        """[1, 1, q, C] bool: which of the tokens read so far each query sees; None where that is simply causal."""
        return self._mask

    def prefix(self, layer: int) -> None:
        """As of a SlotCache. Prompts are read by the eager operators, one last token by itself, too."""
        return None

    def entries(self, **about: Tensor) -> Entries:
        """What the prompts leave, as a method sees it. `about`: the other fields of `Entries`."""
        g = self.geometry
        queries = at = None
        if self.needs.queries:
            queries, at = _oldest_first(self.queries, self.query_positions)
        return Entries(
            keys=self.keys,
            values=self.values,
            positions=self.positions[None, :, None].expand(g.layers, -1, g.kv_heads, -1),
            geometry=g,
            queries=queries,
            query_positions=at,
            traits=self.traits,
            bias=self.needs.bias,
            **about,
        )

    def see(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        rows, start, stop = self.rows, self.part.start, self.part.stop
        if self.needs.queries:
            at = self.query_positions[:rows] - start
            here = ((at >= 0) & (at < stop - start))[:, None, :, None]
            at = at.clamp(0, stop - start - 1)[:, None, :, None]
            new = query.gather(2, at.expand(-1, query.shape[1], -1, query.shape[3]))
            held = self.queries[layer, :rows]
            held.copy_(torch.where(here, new, held))
        if self.observers:
            watched = {k: v for k, v in self.traits.items() if not self.needs.traits[k].shared}
            traits = {k: v[layer, :rows, :, :stop] for k, v in watched.items()}
            columns = torch.arange(stop, device=query.device)
            exists = self.positions[:rows, :stop] >= 0
            for part in _pieces(query, stop):
                at = slice(start + part.start, start + part.stop)
                mask = (columns <= columns[at, None]) & exists[:, None, None, None, :]
                attention = _attention(query[:, :, part], key, mask, scaling)
                for observer in self.observers:
                    observer.observe(layer, attention, traits, self.positions[:rows, at])


class _CaptureLayer(_SlotLayer):
    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        capture, found = self.cache, []
        for whole, new in ((capture.keys, key_states), (capture.values, value_states)):
            mine = whole[self.layer, : capture.rows]
            mine[:, :, capture.part] = new
            # What was just made is read as it is where there is nothing before it.
            found.append(mine[:, :, : capture.part.stop] if capture.part.start else new)
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


def _pieces(query: Tensor, columns: int) -> Iterator[slice]:
    """Slices of the queries [B, Hq, q, D] whose attention over so many columns fits the memory set aside for it."""
    rows, heads, count, _ = query.shape
    step = max(1, _CHUNK_ELEMENTS // (rows * heads * columns))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _newest(position: Tensor, count: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which of `count` [rows] tokens from `position` [rows] on comes into each place of a ring of `size`, position p
    lying at p mod size: [rows, size] token numbers, and whether there is one; of several the newest."""
    last = (position + count - 1)[:, None]
    place = torch.arange(size, device=position.device)
    token = last - (last - place) % size - position[:, None]
    return token, token >= 0


def _attention(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Probabilities [B, H, G, q, C] fp32 of query [B, Hq, q, D] over key [B, H, C, D]; `mask` broadcasts to them and is
    bool, or a bias with -inf where nothing is."""
    batch, heads, count, dim = query.shape
    # Query heads stand along the query axis, so that no key is copied for each of them.
    grouped = query.reshape(batch, key.shape[1], -1, dim).float()
    logits = (grouped @ key.float().transpose(-1, -2)).unflatten(2, (-1, count)) * scaling
    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    return logits.softmax(-1)


def _oldest_first(queries: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [L, R, Hq, W, D] and their positions [R, W], by position."""
    at, order = positions.sort(dim=-1)
    return queries.gather(3, order[None, :, None, :, None].expand_as(queries)), at


def _widen(x: Tensor, more: int, value: float) -> Tensor:
    return torch.cat([x, x.new_full((*x.shape[:3], more), value)], 3)
