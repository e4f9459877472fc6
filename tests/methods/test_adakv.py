"""Head budgets against a slow oracle in exact fractions, and the presets that use them."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from cask_methods.allocations.adakv import AdaKV
from cask_methods.allocations.shares import fit, largest_remainder
from cask_methods.allocations.uniform import Uniform
from cask_methods.presets.adakv import AdaKV as AdaKVPreset
from cask_methods.presets.snapkv import SnapKV
from cask_methods.presets.tri_adakv import TriAdaKV
from cask_methods.presets.triattention import TriAttention
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single, statistics

from cask_eval.engine.contract import Host
from cask_eval.errors import MethodError

FLOORS = ["0", "0.2", "0.5", "0.333", "0.77", "1"]


def pooled(scores, candidates, count):
    """How many of the `count` best of all heads lie in each: higher score first, then lower index, then lower head."""
    order = sorted((-scores[h][i], i, h) for h in range(len(scores)) for i in candidates[h])
    return [sum(h == k for _, _, h in order[:count]) for k in range(len(scores))]


def oracle(scores, candidates, free, floor, variant):
    """Budgets of one layer and row. scores: [H][n] numbers. candidates: [H] lists of indices. free: [H]."""
    f, heads, pool = Fraction(floor), range(len(free)), sum(free)
    if variant == "kvpress":
        best = [sorted(candidates[h], key=lambda i, h=h: (-scores[h][i], i)) for h in heads]
        safe = [best[h][: math.floor(f * free[h])] for h in heads]
        rest = [[i for i in candidates[h] if i not in safe[h]] for h in heads]
        more = pooled(scores, rest, pool - sum(map(len, safe)))
        return [len(safe[h]) + more[h] for h in heads]
    exact = [(1 - f) * c + f * b for c, b in zip(pooled(scores, candidates, pool), free, strict=True)]
    budgets = [math.floor(x) for x in exact]
    for h in sorted(heads, key=lambda h: (budgets[h] - exact[h], h))[: pool - sum(budgets)]:
        budgets[h] += 1
    room = [len(c) for c in candidates]
    budgets = [min(b, r) for b, r in zip(budgets, room)]
    while sum(budgets) < pool:  # one unit a round to every head that has room, the lower first
        for h in heads:
            if budgets[h] < room[h] and sum(budgets) < pool:
                budgets[h] += 1
    return budgets


def case(seed, layers, rows, heads, n, levels):
    """Scores with ties, and heads with unequal numbers of candidates and of protected entries."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (layers, rows, heads, n), generator=g).float()
    held = torch.randint(1, n + 1, (layers, rows, heads, 1), generator=g)
    resident = torch.arange(n) < held
    protected = resident & (torch.arange(n) < torch.randint(3, (layers, rows, heads, 1), generator=g))
    candidates = resident & ~protected
    low = protected.sum(-1).amax((0, 2))
    high = resident.sum(-1).sum(-1).div(heads, rounding_mode="floor").amin(0)
    return scores, candidates, protected, low, high, g


@given(st.integers(0, 2**32 - 1), st.sampled_from(FLOORS), st.sampled_from(["paper", "kvpress"]), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_equals_the_oracle(seed, floor, variant, heads):
    scores, candidates, protected, low, high, g = case(seed, 2, 3, heads, 12, 4)
    rows = (low <= high).nonzero().flatten()
    scores, candidates, protected, low, high = (
        *(x[:, rows] for x in (scores, candidates, protected)),
        low[rows],
        high[rows],
    )
    target = torch.tensor(
        [int(torch.randint(a, b + 1, (1,), generator=g)) for a, b in zip(low, high)], dtype=torch.int64
    )
    got = AdaKV(float(floor), variant, heads).allocate(scores, candidates, protected, target)
    assert got.dtype == torch.int64 and got.shape == (2, len(rows), heads)
    for layer in range(2):
        for r in range(len(rows)):
            free = [int(target[r]) - int(protected[layer, r, h].sum()) for h in range(heads)]
            among = [candidates[layer, r, h].nonzero().flatten().tolist() for h in range(heads)]
            assert got[layer, r].tolist() == oracle(scores[layer, r].tolist(), among, free, floor, variant)
            assert sum(got[layer, r].tolist()) + int(protected[layer, r].sum()) == heads * int(target[r])


@pytest.mark.parametrize("variant", ["paper", "kvpress"])
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_null_floor_is_uniform_bit_for_bit(variant, seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 2, 4, 16, generator=g) * 10 ** torch.randn(3, 2, 4, 1, generator=g)
    protected = torch.arange(16).expand_as(scores) < torch.randint(3, (1, 2, 1, 1), generator=g)
    target = torch.randint(4, 15, (2,), generator=g)
    got = AdaKV(1.0, variant, 4).allocate(scores, ~protected, protected, target)
    assert torch.equal(got, Uniform().allocate(scores, ~protected, protected, target).expand_as(got))


@pytest.mark.parametrize("variant", ["paper", "kvpress"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_identical_heads_get_equal_budgets(variant, scale):
    scores = (torch.randn(2, 3, 1, 20, generator=torch.Generator().manual_seed(1)) * scale).expand(2, 3, 5, 20)
    none = torch.zeros(2, 3, 5, 20, dtype=torch.bool)
    got = AdaKV(0.2, variant, 5).allocate(scores, ~none, none, torch.tensor([3, 7, 11]))
    assert torch.equal(got, torch.tensor([3, 7, 11])[None, :, None].expand(2, 3, 5))


def test_a_head_with_all_high_scores_gets_all_but_the_floor():
    scores = torch.zeros(1, 1, 4, 100)
    scores[0, 0, 2] += 5
    none = torch.zeros_like(scores, dtype=torch.bool)
    give = lambda variant: AdaKV(0.2, variant, 4).allocate(scores, ~none, none, torch.tensor([20]))  # noqa: E731
    # c = (0, 0, 80, 0), so (1 − f)·c + f·20 = (4, 4, 68, 4).
    assert give("paper").flatten().tolist() == [4, 4, 68, 4]
    assert give("kvpress").flatten().tolist() == [4, 4, 68, 4]
    spread = scores.clone()
    spread[0, 0, 0, :4] = 9
    # Head 0's four best are the best of all: one rule adds them to its floor, in the other they are its floor.
    assert AdaKV(0.2, "paper", 4).allocate(spread, ~none, none, torch.tensor([20])).flatten().tolist() == [7, 4, 65, 4]
    assert AdaKV(0.2, "kvpress", 4).allocate(spread, ~none, none, torch.tensor([20])).flatten().tolist() == [
        4,
        4,
        68,
        4,
    ]


def test_exact_fractions_decide_ties():
    """0.3·1 + 0.7·6 = 4.5 and 0.3·11 + 0.7·6 = 7.5; as floating-point numbers the former is less."""
    scores = torch.zeros(1, 1, 2, 20)
    scores[0, 0, 0, :1] = scores[0, 0, 1, :11] = 1
    none = torch.zeros_like(scores, dtype=torch.bool)
    allocation = AdaKV(0.7, "paper", 2)
    assert allocation.allocate(scores, ~none, none, torch.tensor([6])).flatten().tolist() == [5, 7]
    assert allocation.allocate(scores.flip(2), ~none, none, torch.tensor([6])).flatten().tolist() == [8, 4]


def test_a_shared_head_axis_is_refused_and_one_head_is_not():
    one = torch.zeros(2, 1, 1, 8)
    none = torch.zeros_like(one, dtype=torch.bool)
    with pytest.raises(MethodError, match="a score for every head"):
        AdaKV().allocate(one, ~none, none, torch.tensor([4]))
    with pytest.raises(MethodError, match="a score for every head"):
        AdaKV().bind(Host(geometry(kv_heads=2))).allocate(one, ~none, none, torch.tensor([4]))
    assert (
        AdaKV().bind(Host(geometry(kv_heads=1))).allocate(one, ~none, none, torch.tensor([4])).tolist() == [[[4]]] * 2
    )


def test_what_cannot_be_kept_is_refused():
    scores, none = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8, dtype=torch.bool)
    with pytest.raises(MethodError, match="18 places to share.* 16 candidates"):
        AdaKV().allocate(scores, ~none, none, torch.tensor([9]))
    protected = none.clone()
    protected[0, 0, 1, :5] = True
    with pytest.raises(MethodError, match="a head at least -1"):
        AdaKV().allocate(scores, ~protected, protected, torch.tensor([4]))
    for bad in ({"floor": 1.5}, {"floor": -0.1}, {"variant": "other"}):
        with pytest.raises(MethodError, match="adakv"):
            AdaKV(**bad)


# -- whole shares ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_largest_remainders_are_hamiltons(parts, denominator):
    parts[-1] += -sum(parts) % denominator
    got = largest_remainder(torch.tensor(parts), denominator).tolist()
    assert sum(got) == sum(parts) // denominator
    up = [g - p // denominator for g, p in zip(got, parts)]
    assert set(up) <= {0, 1}
    key = [(-(p % denominator), k) for k, p in enumerate(parts)]
    assert all(key[i] < key[j] for i in range(len(up)) if up[i] for j in range(len(up)) if not up[j])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_fitted_shares_are_the_nearest(data):
    """Against every vector of whole numbers between the bounds with the right sum."""
    k = data.draw(st.integers(1, 3))
    low = [data.draw(st.integers(0, 4)) for _ in range(k)]
    high = [data.draw(st.integers(a, 6)) for a in low]
    shares = [data.draw(st.integers(-3, 9)) for _ in range(k)]
    total = data.draw(st.integers(sum(low), sum(high)))
    got = fit(*(torch.tensor([x]) for x in (shares, low, high)), torch.tensor([total]))[0].tolist()
    every = [[]]
    for a, b in zip(low, high):
        every = [[*v, x] for v in every for x in range(a, b + 1)]

    def distance(v):
        return sum((x - s) ** 2 for x, s in zip(v, shares))

    best = min((v for v in every if sum(v) == total), key=lambda v: (distance(v), [-x for x in v]))
    assert got == best


# -- presets -----------------------------------------------------------------------------------------------------------


def bind(method, geo, tmp_path):
    statistics(geo).save(tmp_path / "s.safetensors")
    return method.bind(Host(geo, str(tmp_path / "s.safetensors")))


@pytest.mark.parametrize("preset, reference", [(TriAdaKV, TriAttention), (AdaKVPreset, SnapKV)])
@pytest.mark.parametrize("params", [{}, {"prompt": "compete"}, {"recent": 9, "sink": 2}])
def test_presets_share_out_the_budget(preset, reference, params, tmp_path):
    geo = geometry(kv_heads=4)
    null = preset.make("p", {**params, "floor": "1"})
    e = entries(geo, lengths=(40, 30, 24), needs=bind(null, geo, tmp_path).needs)
    target = torch.tensor([22, 16, 14])
    want = bind(reference.make("r", params), geo, tmp_path).compress(e, target).keep
    assert torch.equal(bind(null, geo, tmp_path).compress(e, target).keep, want)
    for variant in ("paper", "kvpress"):
        method = preset.make("p", {**params, "variant": variant})
        policy = bind(method, geo, tmp_path)
        keep = policy.compress(e, target).keep
        counts = keep.sum(-1)
        assert (counts.sum(-1) == 4 * target).all() and counts.unique().numel() > 4
        assert not (method.protected(e, target) & ~keep).any()
        for r in range(3):
            alone = single(e, r)
            part = policy.compress(alone, target[r : r + 1]).keep
            assert torch.equal(part[:, 0], keep[:, r, :, : part.shape[-1]])


def test_ragged_heads_are_shared_out_again(tmp_path):
    """What an event left, unequal over heads, grown by some steps."""
    geo = geometry(kv_heads=3)
    policy = bind(TriAdaKV(delta=4, floor=0.1, prompt="compete"), geo, tmp_path)
    e = entries(geo, lengths=(30, 30), prompts=(0, 0))
    target = torch.tensor([12, 9])
    for _ in range(3):
        keep = policy.compress(e, target).keep
        order = (~keep).sort(dim=-1, stable=True).indices[..., : int(keep.sum(-1).max())]
        real = keep.gather(-1, order)
        wide = order[..., None].expand(*order.shape, 16)
        g = torch.Generator().manual_seed(7)
        assert keep.sum(-1).unique().numel() > 1
        # Four new entries for every head, put behind what it has left.
        new = torch.randn(3, 2, 3, order.shape[-1] + 4, 16, generator=g)
        at = (real.sum(-1)[..., None] + torch.arange(4))[..., None].expand(-1, -1, -1, -1, 16)
        keys = torch.cat([e.keys.gather(3, wide), torch.zeros(3, 2, 3, 4, 16)], 3).scatter(3, at, new)
        positions = e.positions.gather(-1, order).masked_fill(~real, -1)
        positions = torch.cat([positions, torch.full((3, 2, 3, 4), -1)], -1)
        fresh = (e.length[None, :, None, None] + torch.arange(4)).expand(3, 2, 3, 4)
        positions = positions.scatter(-1, at[..., 0], fresh)
        e = dataclasses.replace(e, keys=keys, values=keys, positions=positions, length=e.length + 4)
        assert ((positions >= 0).sum((0, 2, 3)) == (target + 4) * 9).all()


def test_scores_that_are_not_per_head_are_refused(tmp_path):
    geo = geometry()
    policy = bind(TriAdaKV(mode="global"), geo, tmp_path)
    with pytest.raises(MethodError, match="a score for every head"):
        policy.compress(entries(geo), torch.tensor([12, 9, 6]))
    with pytest.raises(MethodError, match="mode 'global'"):
        TriAdaKV.make("tri_adakv", {"mode": "global"})
    with pytest.raises(MethodError, match="floor is 1.5"):
        TriAdaKV.make("tri_adakv", {"floor": "1.5"})


def test_one_budget_for_each_head_of_all_layers(tmp_path):
    geo = geometry(kv_heads=4)
    e = entries(geo, lengths=(40, 30, 24))
    keep = bind(TriAdaKV(mode="per_head"), geo, tmp_path).compress(e, torch.tensor([22, 16, 14])).keep
    assert (keep == keep[:1]).all() and keep.sum(-1).unique().numel() > 3
