"""Compaction by the kernel: entry for entry what plain Python moves, and what `SlotCache.place` does without it."""

import dataclasses

import pytest
import torch
from method_cases import entries, geometry

from cask_eval.engine.contract import Needs, Trait
from cask_eval.engine.slots import SlotCache


@pytest.fixture(scope="module")
def compact(device):
    from cask_eval.engine.kernels import compact

    return compact


def move(keep, source, kept):
    """The kept entries of `source` [n, …] in their order, as a list."""
    return [source[i] for i in range(len(keep)) if keep[i]][:kept]


def check(cache, slots, e, keep):
    for layer in range(keep.shape[0]):
        for row, slot in enumerate(slots.tolist()):
            for head in range(keep.shape[2]):
                at, wanted = (layer, slot, head), keep[layer, row, head]
                count = int(wanted.sum())
                assert int(cache.fill[at]) == count
                want = move(wanted, e.positions[layer, row, head], count)
                assert cache.positions[at].tolist() == [*map(int, want), *[-1] * (cache.capacity - count)]
                for held, new in ((cache.store.keys, e.keys), (cache.store.values, e.values)):
                    moved = move(wanted, new[layer, row, head], count)
                    assert all(torch.equal(held[at][i], x) for i, x in enumerate(moved))


def filled(geo, needs, slots, capacity, device, seed=9):
    g = torch.Generator().manual_seed(seed)
    cache = SlotCache(geo, slots, capacity, device, needs)
    for x in (cache.store.keys, cache.store.values):
        x.copy_(torch.randn(x.shape, generator=g).to(x.dtype))
    return cache


def on(device, e):
    given = {f.name: getattr(e, f.name) for f in dataclasses.fields(e)}
    moved = {name: x.to(device) for name, x in given.items() if torch.is_tensor(x)}
    return dataclasses.replace(e, **moved, traits={k: v.to(device) for k, v in e.traits.items()})


MASS = Needs(traits={"mass": Trait(start=1.0), "seen": Trait(torch.int64, shared=True)})


@pytest.mark.parametrize("needs", [Needs(), MASS])
@pytest.mark.parametrize(
    ("lengths", "dim", "share"), [((70, 14, 33), 6, 0.5), ((9, 1, 2), 16, 0.0), ((40, 3, 8), 2, 1.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_place(compact, device, use, needs, lengths, dim, share, dtype):
    geo = dataclasses.replace(geometry(layers=2, head_dim=dim), dtype=dtype)
    e = on(device, entries(geo, lengths, dtype=dtype, needs=needs))
    g = torch.Generator().manual_seed(1)
    shape = e.positions.shape
    if needs.traits:  # a shared trait: all layers and heads keep the same
        shape = (1, shape[1], 1, shape[3])
    keep = (torch.rand(shape, generator=g).to(device) < share) & e.resident
    kept = max(1, int(keep.sum(-1).max()))
    slots, counts = torch.tensor([4, 0, 2], device=device), [1, 1, 1]
    eager, ours = (filled(geo, needs, 5, 75, device) for _ in range(2))
    untouched = ours.store.keys[:, [1, 3]].clone()
    eager.place(slots, e, keep, kept, counts)
    use("compact")
    ours.place(slots, e, keep, kept, counts)
    check(ours, slots, e, keep)
    assert torch.equal(ours.positions, eager.positions) and torch.equal(ours.fill, eager.fill)
    real = (eager.positions >= 0)[..., None]
    for a, b in zip(ours.store.buffers, eager.store.buffers):
        assert torch.equal(torch.where(real, a, 0), torch.where(real, b, 0))
    for name in needs.traits:
        assert torch.equal(ours.traits[name], eager.traits[name])
    assert torch.equal(ours.store.keys[:, [1, 3]], untouched)


@pytest.mark.parametrize("seed", range(5))
def test_entries_that_lie_in_the_slots_themselves(compact, device, seed):
    """Source and target overlap; reading must not see what was written."""
    g = torch.Generator().manual_seed(seed)
    geo = geometry(layers=1, head_dim=4)
    cache = filled(geo, Needs(), 2, 90, device, seed)
    cache.positions.copy_(torch.arange(90))
    keep = (torch.rand(1, 2, 2, 90, generator=g) < 0.6).to(device)
    kept = int(keep.sum(-1).max())
    before = entries(geo, (90, 90), (0, 0))
    object.__setattr__(before, "keys", cache.store.keys.clone())
    object.__setattr__(before, "values", cache.store.values.clone())
    object.__setattr__(before, "positions", cache.positions.clone())
    swapped = torch.tensor([1, 0], device=device)
    compact.place(
        swapped, *cache.store.buffers, cache.positions, keep, kept, *cache.store.buffers, cache.positions, cache.fill
    )
    check(cache, swapped, before, keep)


def test_no_more_than_kept_is_written(compact, device):
    geo = geometry(layers=1, head_dim=4)
    cache, e = filled(geo, Needs(), 3, 40, device), on(device, entries(geo))
    keep = e.resident.clone()
    compact.place(
        torch.arange(3, device=device),
        e.keys,
        e.values,
        e.positions,
        keep,
        6,
        *cache.store.buffers,
        cache.positions,
        cache.fill,
    )
    assert (cache.fill == 6).all() and (cache.positions[..., 6:] == -1).all()


def test_views_with_shared_and_strided_positions(compact, device, use):
    """As a prompt's capture gives them: one row of positions for all layers and heads."""
    geo = geometry(layers=2, head_dim=4)
    e = on(device, entries(geo, (12, 7, 5), scattered=False))
    e = dataclasses.replace(
        e,
        positions=e.positions[:1, :, :1].clone().expand(e.positions.shape),
        keys=e.keys.transpose(1, 2).contiguous().transpose(1, 2),
    )
    cache, slots = filled(geo, Needs(), 3, 20, device), torch.arange(3, device=device)
    use("compact")
    cache.place(slots, e, e.resident, 12, [12, 7, 5])
    check(cache, slots, e, e.resident)


def test_other_types_are_left_to_the_eager_path(compact, device, use):
    geo = dataclasses.replace(geometry(layers=1, head_dim=4), dtype=torch.float64)
    cache, e = SlotCache(geo, 3, 30, device), on(device, entries(geo, dtype=torch.float64))
    use("compact")
    cache.place(torch.arange(3, device=device), e, e.resident, 20, [20, 14, 7])
    check(cache, torch.arange(3), e, e.resident)
