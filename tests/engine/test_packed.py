"""Quantised storage against a slow model of it, and its bytes against the footprint at every read."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.engine.contract import Geometry
from cask_eval.engine.packed import PackedStore, dequantise, pack, quantise, unpack
from cask_eval.errors import MethodError
from cask_eval.footprint import Footprint, Packing

SHAPE = Geometry(2, 4, 2, 8, torch.ones(4, dtype=torch.float64), 1.0, torch.float32)
HEADS = SHAPE.layers * SHAPE.kv_heads
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def footprint(packing: Packing, geometry: Geometry = SHAPE) -> Footprint:
    return Footprint(geometry.layers * geometry.kv_heads, geometry.head_dim, geometry.dtype.itemsize, packing)


def draw(g, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=g).to(dtype)


# -- the slow model: one layer, head and row; numbers as Python floats -------------------------------------------------


def rounded(numbers: list[float], bits: int) -> list[float]:
    low, high = min(numbers), max(numbers)
    step = (high - low) / (2**bits - 1)
    # The middle between two codes, and 2^-11 of a step above it, goes down.
    return [low + round((x - low) / step - 2**-11) * step if step else low for x in numbers]


class Slow:
    def __init__(self, packing: Packing):
        self.p, self.keys, self.values = packing, [], []
        self.loose_keys = self.loose_values = 0

    def place(self, keys, values):
        self.keys, self.values = [list(k) for k in keys], [list(v) for v in values]
        self.loose_keys = self.loose_values = len(keys)
        while self.loose_keys >= self.p.residual:
            self.pack_block()
        while self.loose_values > self.p.residual:
            self.pack_value()

    def append(self, key, value):
        self.keys.append(list(key))
        self.values.append(list(value))
        self.loose_keys += 1
        self.loose_values += 1

    def settle(self):
        if self.loose_keys == self.p.residual:
            self.pack_block()
        if self.loose_values > self.p.residual:
            self.pack_value()

    def pack_block(self):
        start = len(self.keys) - self.loose_keys
        for first in range(start, start + self.p.residual, self.p.group):
            for channel in range(len(self.keys[0])):
                group = rounded([self.keys[i][channel] for i in range(first, first + self.p.group)], self.p.bits)
                for i, x in enumerate(group):
                    self.keys[first + i][channel] = x
        self.loose_keys -= self.p.residual

    def pack_value(self):
        value = self.values[len(self.values) - self.loose_values]
        for first in range(0, len(value), self.p.group):
            value[first : first + self.p.group] = rounded(value[first : first + self.p.group], self.p.bits)
        self.loose_values -= 1

    def bytes(self, dim, itemsize):
        """Every number in full precision costs its size, every code its bits, every group two numbers."""
        packed_keys, packed_values = len(self.keys) - self.loose_keys, len(self.values) - self.loose_values
        codes = (packed_keys + packed_values) * dim * self.p.bits // 8
        groups = packed_keys * dim // self.p.group + packed_values * dim // self.p.group
        return (self.loose_keys + self.loose_values) * dim * itemsize + codes + groups * 2 * itemsize


class Pair:
    """A store and its slow model, driven together."""

    def __init__(self, packing: Packing, slots: int, capacity: int, seed: int = 0):
        self.store = PackedStore(SHAPE, slots, capacity, packing, "cpu")
        self.slow = {at: Slow(packing) for at in itertools.product(range(2), range(slots), range(2))}
        self.packing, self.fills, self.capacity = packing, [0] * slots, capacity
        self.g = torch.Generator().manual_seed(seed)

    def place(self, slots, keys, values, counts):
        self.store.place(torch.tensor(slots), keys, values, counts)
        for (layer, h), (r, slot) in itertools.product(itertools.product(range(2), range(2)), enumerate(slots)):
            n = counts[r]
            self.slow[layer, slot, h].place(keys[layer, r, h, :n].tolist(), values[layer, r, h, :n].tolist())
        for slot, n in zip(slots, counts, strict=True):
            self.fills[slot] = n

    def fill(self, counts):
        keys, values = (draw(self.g, 2, len(counts), 2, max(counts), 8) for _ in range(2))
        for r, n in enumerate(counts):
            keys[:, r, :, n:] = values[:, r, :, n:] = torch.nan
        self.place(list(range(len(counts))), keys, values, counts)

    def step(self):
        rows, width = len(self.fills), max(self.fills) + 1
        index = torch.tensor(self.fills)[:, None].expand(rows, 2)
        read = [self.store.used_bytes(rows, (index[:, 0] + 1) * HEADS)]
        for layer in range(2):
            key, value = (draw(self.g, rows, 2, 1, 8) for _ in range(2))
            keys, values = self.store.append(layer, key, value, index, width)
            for slot, h in itertools.product(range(rows), range(2)):
                self.slow[layer, slot, h].append(key[slot, h, 0].tolist(), value[slot, h, 0].tolist())
                self.same(layer, slot, h, keys[slot, h], values[slot, h])
            assert keys.shape == values.shape == (rows, 2, width, 8)
            assert torch.equal(keys.gather(2, index[:, :, None, None].expand(-1, -1, 1, 8)), key)
        self.fills = [n + 1 for n in self.fills]
        read.append(self.store.used_bytes(rows, torch.tensor(self.fills) * HEADS))
        for slot, n in enumerate(self.fills):
            slow = sum(self.slow[layer, slot, h].bytes(8, 4) for layer in range(2) for h in range(2))
            assert [int(x[slot]) for x in read] == [slow] * 2 == [footprint(self.packing).payload(n)] * 2
        for slow in self.slow.values():
            slow.settle()
        self.store.settle(self.fills)

    def same(self, layer, slot, h, keys, values):
        """Equal up to fp32 rounding; where a number lies halfway between two codes, either may have won."""
        slow = self.slow[layer, slot, h]
        for got, want in ((keys, slow.keys), (values, slow.values)):
            assert torch.isfinite(got).all()
            assert torch.allclose(got[: len(want)], torch.tensor(want), atol=1e-5), (layer, slot, h)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@given(st.integers(0, 2**32 - 1), st.integers(-30, 30), st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_misses_by_at_most_half_a_step(dtype, bits, seed, power, shift):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 32, generator=g).mul(2.0 ** (power / 3)).add(shift).to(dtype)
    codes, scale, zero = quantise(x, bits)
    assert codes.dtype == torch.uint8 and scale.dtype == zero.dtype == dtype
    assert int(codes.max()) <= 2**bits - 1 and scale.shape == (4, 3, 1)
    back = dequantise(codes, scale, zero)
    assert back.dtype == dtype
    half, eps = scale.double() * (1 / 2 + 2**-11), torch.finfo(dtype).eps
    smallest = torch.finfo(dtype).smallest_normal * eps  # the spacing of numbers around 0
    rounding = x.abs().amax(-1, keepdim=True).double() * (eps + 2**-22) + smallest
    assert ((back.double() - x.double()).abs() <= half + rounding).all()
    # A step is no wider than the range asks for, but for the rounding of the scale.
    spread = (x.amax(-1, keepdim=True).double() - x.amin(-1, keepdim=True).double()) / (2**bits - 1)
    assert (scale.double() <= spread * (1 + 2 * eps) + smallest).all()
    # The least number of a group is exact.
    least = x.argmin(-1, keepdim=True)
    assert torch.equal(back.gather(-1, least), x.gather(-1, least))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.7, 3e4, 1e-7])
def test_constant_groups_are_exact(dtype, value):
    x = torch.full((2, 16), value, dtype=dtype)
    assert torch.equal(dequantise(*quantise(x, 2)), x)


def test_tiny_ranges_survive():
    """A range whose step is below the smallest number of the dtype."""
    x = torch.tensor([[0.0, 2.0**-24] * 4], dtype=torch.float16)
    assert ((dequantise(*quantise(x, 8)) - x).abs() <= 2.0**-25).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_numbers_on_a_grid_are_exact(bits):
    x = torch.arange(2**bits, dtype=torch.float32).repeat(3, 2) * 0.25 - 1
    assert torch.equal(dequantise(*quantise(x, bits)), x)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]))
@settings(max_examples=30, deadline=None)
def test_the_last_bit_does_not_decide_over_numbers_quantised_before(seed, bits):
    """Numbers on one grid, grouped anew; then the same with noise as of a differently ordered sum."""
    g = torch.Generator().manual_seed(seed)
    grid = dequantise(*quantise(torch.randn(16, 32, generator=g), bits))
    groups = grid.gather(1, torch.rand(16, 32, generator=g).argsort(1)).view(128, 4)
    noisy = groups * (1 + 2e-7 * torch.randn(16, 1, generator=g).repeat_interleave(8, 0))
    assert torch.equal(quantise(groups, bits)[0], quantise(noisy, bits)[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows(value):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    x[1, 5] = value
    back = dequantise(*quantise(x, 4))
    assert torch.isnan(back[1]).all() and torch.isfinite(back[[0, 2]]).all()


@given(st.sampled_from([2, 4, 8]), st.integers(1, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_codes_of_every_width_round_trip(bits, count, data):
    dim = count * 8 // bits
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=2 * dim, max_size=2 * dim))
    codes = torch.tensor(numbers, dtype=torch.uint8).view(2, dim)
    packed = pack(codes, bits)
    assert packed.shape == (2, count) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits), codes)
    want = [
        sum(c << (bits * i) for i, c in enumerate(numbers[at : at + 8 // bits])) for at in range(0, 2 * dim, 8 // bits)
    ]
    assert packed.flatten().tolist() == want


# -- the store ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [Packing(2, 4, 8), Packing(4, 2, 4), Packing(8, 8, 8), Packing(8, 1, 1)])
def test_every_residual_boundary(packing):
    """Prompts of R − 1, R, R + 1 and so on entries, each followed by two cycles of steps."""
    size = packing.residual
    counts = sorted({max(1, n) for n in (1, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1)})
    pair = Pair(packing, len(counts), max(counts) + 2 * size + 2)
    pair.fill(counts)
    for _ in range(2 * size + 2):
        pair.step()


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_history_equals_the_slow_model(data):
    packing = data.draw(st.sampled_from([Packing(2, 4, 4), Packing(4, 2, 4), Packing(8, 4, 8)]))
    counts = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=3))
    pair = Pair(packing, len(counts), 40, seed=data.draw(st.integers(0, 999)))
    pair.fill(counts)
    for _ in range(data.draw(st.integers(1, 3))):
        for _ in range(data.draw(st.integers(0, 6))):
            pair.step()
        if data.draw(st.booleans()):
            at = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, unique=True))
            keep = data.draw(st.integers(1, min(pair.fills[i] for i in at)))
            keys, values = pair.store.read(torch.tensor(at), max(pair.fills))
            for r, slot in enumerate(at):
                for layer, h in itertools.product(range(2), range(2)):
                    pair.same(layer, slot, h, keys[layer, r, h], values[layer, r, h])
            order = torch.rand(2, len(at), 2, min(pair.fills[i] for i in at), generator=pair.g).argsort(-1)[..., :keep]
            order = order.sort(-1).values[..., None].expand(-1, -1, -1, -1, 8)
            # On a fresh grid, so that no number lies halfway between two codes.
            keys, values = (x.gather(3, order) + 0.01 * draw(pair.g, *order.shape) for x in (keys, values))
            pair.place(at, keys, values, [keep] * len(at))
    pair.step()


def test_moving_a_slot_copies_all_of_it():
    pair = Pair(Packing(4, 4, 4), 3, 24)
    pair.fill([3, 9, 12])
    for _ in range(5):
        pair.step()
    pair.store.move(2, 0)
    pair.fills[0] = pair.fills[2]
    for layer, h in itertools.product(range(2), range(2)):
        other = pair.slow[layer, 2, h]
        mine = pair.slow[layer, 0, h] = Slow(pair.packing)
        mine.keys, mine.values = [list(k) for k in other.keys], [list(v) for v in other.values]
        mine.loose_keys, mine.loose_values = other.loose_keys, other.loose_values
    for _ in range(5):
        pair.step()


def test_a_refilled_slot_keeps_nothing_of_the_last_sequence():
    pair = Pair(Packing(2, 4, 4), 2, 30)
    pair.fill([20, 7])
    for _ in range(6):
        pair.step()
    keys, values = (draw(pair.g, 2, 1, 2, 2, 8) for _ in range(2))
    pair.place([0], keys, values, [2])
    for _ in range(8):
        pair.step()


def test_rows_do_not_depend_on_their_company():
    packing = Packing(2, 4, 4)
    g = torch.Generator().manual_seed(0)
    counts, n = [9, 4, 13], 13
    keys, values = draw(g, 2, 3, 2, n, 8), draw(g, 2, 3, 2, n, 8)
    batch = PackedStore(SHAPE, 3, 20, packing, "cpu")
    batch.place(torch.arange(3), keys, values, counts)
    for r, count in enumerate(counts):
        alone = PackedStore(SHAPE, 1, 20, packing, "cpu")
        part = (x[:, r : r + 1, :, :count] for x in (keys, values))
        alone.place(torch.tensor([0]), *part, [count])
        for mine, theirs in zip(alone.read(torch.tensor([0]), count), batch.read(torch.tensor([r]), count)):
            assert torch.equal(mine, theirs)


def test_newest_entries_are_exact_and_older_ones_are_not():
    store = PackedStore(SHAPE, 1, 32, Packing(2, 8, 8), "cpu")
    g = torch.Generator().manual_seed(2)
    keys, values = draw(g, 2, 1, 2, 21, 8), draw(g, 2, 1, 2, 21, 8)
    store.place(torch.tensor([0]), keys, values, [21])
    got_keys, got_values = store.read(torch.tensor([0]), 21)
    assert torch.equal(got_keys[..., 16:, :], keys[..., 16:, :]) and not torch.equal(got_keys, keys)
    assert torch.equal(got_values[..., 13:, :], values[..., 13:, :])
    assert (got_keys[..., :16, :] != keys[..., :16, :]).any(-1).all()
    assert (got_values[..., :13, :] != values[..., :13, :]).any(-1).all()


def test_an_event_moves_packed_values_hardly_and_packed_keys_by_half_a_step():
    """Keys regroup at every event, values do not."""
    store = PackedStore(SHAPE, 1, 64, Packing(2, 8, 8), "cpu")
    g = torch.Generator().manual_seed(4)
    keys, values = draw(g, 2, 1, 2, 48, 8), draw(g, 2, 1, 2, 48, 8)
    slot = torch.tensor([0])
    store.place(slot, keys, values, [48])
    first = store.read(slot, 40)
    order = torch.arange(0, 40, 2)
    before = [x[:, :, :, order] for x in first]
    store.place(slot, *before, [20])
    after = store.read(slot, 20)
    assert torch.allclose(after[1], before[1], atol=1e-6)
    moved = (after[0] - before[0])[..., :16, :].abs()
    assert moved.max() > 0.1
    groups = before[0][..., :16, :].unflatten(3, (2, 8))
    step = (groups.amax(4) - groups.amin(4)) / 3
    assert (moved.unflatten(3, (2, 8)) <= step.unsqueeze(4) / 2 + 1e-5).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_storage_is_really_smaller(dtype):
    shape = replace(SHAPE, head_dim=64, dtype=dtype)
    packing = Packing(2, 32, 32)
    store = PackedStore(shape, 2, 1024, packing, "cpu")
    held = sum(x.numel() * x.element_size() for x in store.buffers)
    full = 2 * HEADS * 1024 * shape.entry_bytes
    # Allocated is what a full store uses, and the residual of one more value a slot at most.
    used = 2 * footprint(packing, shape).payload(1024)
    assert used <= held <= used + 2 * HEADS * (1 + packing.residual) * shape.entry_bytes
    assert held < 0.25 * full


def test_a_store_smaller_than_its_residual_packs_nothing():
    pair = Pair(Packing(2, 4, 8), 2, 7)
    pair.fill([3, 5])
    for _ in range(2):
        pair.step()
    assert pair.store.packed_keys.tolist() == pair.store.packed_values.tolist() == [0, 0]


def test_nan_in_the_cache_shows():
    store = PackedStore(SHAPE, 1, 16, Packing(2, 4, 4), "cpu")
    keys = torch.zeros(2, 1, 2, 9, 8)
    keys[0, 0, 1, 2, 3] = torch.nan
    store.place(torch.tensor([0]), keys, keys, [9])
    got_keys, got_values = store.read(torch.tensor([0]), 9)
    assert torch.isnan(got_keys[0, 0, 1, :4, 3]).all() and int(torch.isnan(got_keys).sum()) == 4
    assert torch.isnan(got_values[0, 0, 1, 2, :4]).all() and int(torch.isnan(got_values).sum()) == 4


def test_what_does_not_divide_is_refused():
    with pytest.raises(MethodError, match="groups of 16"):
        PackedStore(SHAPE, 1, 64, Packing(2, 16, 16), "cpu")
    with pytest.raises(MethodError, match="whole bytes of 2-bit"):
        PackedStore(replace(SHAPE, head_dim=6), 1, 64, Packing(2, 3, 3), "cpu")
    with pytest.raises(MethodError, match="same number of entries"):
        PackedStore(SHAPE, 1, 64, Packing(2, 4, 4), "cpu").reserve(80)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_holds_what_the_cpu_holds_and_never_waits(dtype):
    shape, packing, counts = replace(SHAPE, dtype=dtype), Packing(2, 4, 8), [5, 20, 31]
    stores = {device: PackedStore(shape, 3, 48, packing, device) for device in ("cpu", "cuda")}
    g = torch.Generator().manual_seed(1)
    keys, values = (draw(g, 2, 3, 2, 31, 8, dtype=dtype) for _ in range(2))
    for device, store in stores.items():
        store.place(torch.arange(3, device=device), keys.to(device), values.to(device), counts)
    for step in range(12):
        new = draw(g, 2, 2, 3, 2, 1, 8, dtype=dtype)
        index = torch.tensor([n + step for n in counts])[:, None].expand(3, 2)
        for layer in range(2):
            moved = {d: (*(x.to(d) for x in new[layer]), index.to(d)) for d in stores}
            torch.cuda.set_sync_debug_mode("error")
            try:
                seen = {d: store.append(layer, *moved[d], 48) for d, store in stores.items()}
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for mine, theirs in zip(seen["cpu"], seen["cuda"]):
                for r, n in enumerate(counts):
                    assert torch.equal(mine[r, :, : n + step + 1], theirs[r, :, : n + step + 1].cpu())
        for store in stores.values():
            store.settle([n + step + 1 for n in counts])
