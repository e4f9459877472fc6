"""The slot cache by itself: what an event leaves is bit for bit what was there, and freed entries are gone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.engine.contract import Geometry, Needs, Trait
from cask_eval.engine.slots import SlotCache
from cask_eval.footprint import Packing

SHAPE = Geometry(2, 4, 2, 8, torch.ones(4, dtype=torch.float64), 1.0, torch.float32)


def filled(slots: int, counts: list[int], capacity: int = 12) -> SlotCache:
    cache = SlotCache(SHAPE, slots, capacity, "cpu")
    g = torch.Generator().manual_seed(1)
    for step in range(max(counts)):
        rows = slots
        cache.begin_step(rows, capacity, torch.full((rows,), step))
        for layer in range(2):
            cache.write(layer, torch.randn(rows, 2, 1, 8, generator=g), torch.randn(rows, 2, 1, 8, generator=g))
        cache.end_step([step + 1] * rows)
    return cache


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 11), st.integers(0, 2**31), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
def test_place_keeps_exactly_the_marked_entries_in_order(keep_count, seed, at):
    cache = filled(4, [11])
    before = [cache.store.keys.clone(), cache.store.values.clone(), cache.positions.clone()]
    slots = torch.tensor(at)
    about = ("prompt_tokens", "length", "seeds", "events")
    entries = cache.entries(slots, 11, **dict.fromkeys(about, torch.zeros(len(at), dtype=torch.int64)))
    order = torch.rand(2, len(at), 2, 11, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    keep = order < keep_count
    cache.place(slots, entries, keep, keep_count, [keep_count] * len(at))
    for i, slot in enumerate(at):
        for layer in range(2):
            for head in range(2):
                stay = keep[layer, i, head].nonzero().squeeze(1)
                for buffer, old in zip((cache.store.keys, cache.store.values, cache.positions), before):
                    assert torch.equal(buffer[layer, slot, head, :keep_count], old[layer, slot, head, stay])
                assert (cache.positions[layer, slot, head, keep_count:] == -1).all()
                assert cache.fill[layer, slot, head] == keep_count
    others = [s for s in range(4) if s not in at]
    assert torch.equal(cache.store.keys[:, others], before[0][:, others])
    assert torch.equal(cache.positions[:, others], before[2][:, others])


def test_the_count_of_a_step_is_read_from_the_storage():
    cache = filled(3, [5])
    entries, held = cache.begin_step(3, 12, torch.full((3,), 5))
    assert entries.tolist() == [6 * 2 * 2] * 3
    assert held.tolist() == [24 * SHAPE.entry_bytes] * 3
    cache.positions[0, 1, 0, 2] = -1
    assert cache.begin_step(3, 12, torch.full((3,), 5))[0].tolist() == [24, 23, 24]


class Doubles:
    """An observer that writes in place wherever it likes, unused columns included."""

    def observe(self, layer, attention, traits, positions):
        traits["n"].mul_(2)


@pytest.mark.parametrize("shared", [False, True])
def test_a_new_entry_starts_with_the_trait_s_start(shared):
    needs = Needs(traits={"n": Trait(start=3.0), "same": Trait(start=1.0, shared=shared)})
    cache = SlotCache(SHAPE, 2, 8, "cpu", needs, observers=[Doubles()])
    for step in range(4):
        cache.begin_step(2, 8, torch.full((2,), step))
        for layer in range(2):
            keys, _ = cache.write(layer, torch.zeros(2, 2, 1, 8), torch.zeros(2, 2, 1, 8))
            cache.see(layer, torch.zeros(2, 4, 1, 8), keys, 1.0)
        cache.end_step([step + 1] * 2)
    # Entry i was seen by the steps i … 3.
    want = torch.tensor([3.0 * 2**4, 3.0 * 2**3, 3.0 * 2**2, 3.0 * 2])
    assert torch.equal(cache.traits["n"][..., :4], want.expand(2, 2, 2, 4))


def test_slot_bytes_are_what_the_tensors_take():
    needs = Needs(3, {"n": Trait(), "same": Trait(dtype=torch.int64, shared=True)})
    cache = SlotCache(SHAPE, 5, 10, "cpu", needs)
    entries = 2 * 2 * 10  # layers, heads, capacity
    want = entries * (SHAPE.entry_bytes + 8 + 4) + 10 * 8 + 2 * 2 * 8 + 2 * 4 * 3 * 8 * 4 + 3 * 8
    assert cache.slot_bytes == want
    packed = SlotCache(SHAPE, 5, 32, "cpu", packing=Packing(2, 8, 16))
    keys = 2 * 2 * (2 * 16 * 2 + 2 * 2 * 2 * 8 * 4 + 16 * 8 * 4)
    values = 2 * 2 * (16 * 2 + 16 * 2 * 4 + 17 * 8 * 4)
    assert packed.slot_bytes == keys + values + 2 * 2 * 32 * 8 + 2 * 2 * 8
