"""Pre-allocated cache slots with physical eviction.

One slot holds one sequence. Keys stay rotated at their logical positions, which lie beside them; -1 marks an
unused entry. Entries of a (slot, layer, head) always occupy a prefix of the capacity, in ascending logical order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from cask_eval.engine.contract import Entries, Geometry


class SlotCache:
    """keys, values: [L, S, H, C, D]; positions: [L, S, H, C] int64; fill: [L, S, H] int64 used entries."""

    def __init__(self, geometry: Geometry, slots: int, capacity: int, device: torch.device | str):
        g = geometry
        self.geometry, self.slots, self.capacity = g, slots, capacity
        shape = (g.layers, slots, g.kv_heads, capacity)
        self.keys = torch.zeros(*shape, g.head_dim, dtype=g.dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.positions = torch.full(shape, -1, dtype=torch.int64, device=device)
        self.fill = torch.zeros(shape[:3], dtype=torch.int64, device=device)
        self.layers_view = Cache(layers=[_SlotLayer(self, i) for i in range(g.layers)])
        self._rows, self._width = slots, capacity
        self._visible: Tensor | None = None

    def begin_step(self, rows: int, width: int, position: Tensor) -> Tensor:
        """Reserve one entry in each of the first `rows` slots for the token at logical `position` [rows].

        `width` bounds the entries any row uses after the append. Returns how many entries attention will read per
        row, counted from the storage itself [rows] int64, summed over layers and heads.
        """
        self._rows, self._width = rows, width
        fill = self.fill[:, :rows]
        self.positions[:, :rows].scatter_(-1, fill[..., None], position[None, :, None, None].expand(*fill.shape, 1))
        self._visible = self.positions[:, :rows, :, :width] >= 0
        return self._visible.sum((0, 2, 3))

    def visible(self, layer: int) -> Tensor:
        """[rows, H, width] bool: the entries that exist in `layer` in this step."""
        return self._visible[layer]

    def end_step(self) -> None:
        self.fill[:, : self._rows] += 1

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one entry a row ([rows, H, 1, D]) in the reserved place; returns the layer's keys and values."""
        rows, index = self._rows, self.fill[layer, : self._rows, :, None, None].expand_as(key)
        keys, values = self.keys[layer, :rows], self.values[layer, :rows]
        keys.scatter_(2, index, key)
        values.scatter_(2, index, value)
        return keys[:, :, : self._width], values[:, :, : self._width]

    def place(self, slots: Tensor, entries: Entries, keep: Tensor, kept: int) -> None:
        """Fill the given slots [R] with the entries that `keep` [L, R, H, n] marks, at most `kept` a head; whatever
        the slots held before is gone."""
        order = torch.sort(~keep, dim=-1, stable=True).indices[..., :kept]
        positions = entries.positions.gather(-1, order).masked_fill(~keep.gather(-1, order), -1)
        wide = order[..., None].expand(*order.shape, self.geometry.head_dim)
        self.keys[:, slots, :, :kept] = entries.keys.gather(3, wide)
        self.values[:, slots, :, :kept] = entries.values.gather(3, wide)
        self.positions[:, slots, :, :kept] = positions
        self.positions[:, slots, :, kept:] = -1
        self.fill[:, slots] = (positions >= 0).sum(-1)

    def entries(
        self,
        slots: Tensor,
        width: int,
        prompt_tokens: Tensor,
        length: Tensor,
        seeds: Tensor,
        events: Tensor,
    ) -> Entries:
        """What the given slots [R] hold, as a method sees it."""
        return Entries(
            keys=self.keys[:, slots, :, :width],
            values=self.values[:, slots, :, :width],
            positions=self.positions[:, slots, :, :width],
            prompt_tokens=prompt_tokens,
            length=length,
            seeds=seeds,
            events=events,
            geometry=self.geometry,
        )

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`."""
        for buffer in (self.keys, self.values, self.positions, self.fill):
            buffer[:, target] = buffer[:, source]


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
    """Collects the keys and values of one forward over whole prompts (no past): [L] × [R, H, P, D]."""

    def __init__(self, layers: int):
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.layers_view = Cache(layers=[_CaptureLayer(self, i) for i in range(layers)])


class _CaptureLayer(_SlotLayer):
    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        self.cache.keys[self.layer], self.cache.values[self.layer] = key_states, value_states
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length
