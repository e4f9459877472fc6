"""Layer budgets against a slow oracle in exact fractions, and the presets that use them."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from cask_methods.allocations.pyramid import Pyramid
from cask_methods.allocations.uniform import Uniform
from cask_methods.presets.pyramidkv import PyramidKV
from cask_methods.presets.snapkv import SnapKV
from cask_methods.presets.tri_pyramid import TriPyramid
from cask_methods.presets.triattention import TriAttention
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single, statistics

from cask_eval.engine.contract import Host
from cask_eval.errors import MethodError


def ideal(b, window, layers, beta):
    """The published line from its two ends, rounded by largest remainder."""
    least = Fraction(b - window, beta)
    most = 2 * (b - window) - least
    exact = [window + most - (most - least) * Fraction(k, max(1, layers - 1)) for k in range(layers)]
    if layers == 1:
        exact = [Fraction(b)]
    out = [math.floor(x) for x in exact]
    for k in sorted(range(layers), key=lambda k: (out[k] - exact[k], k))[: layers * b - sum(out)]:
        out[k] += 1
    return out


def moved(budgets, low, high, total):
    """All budgets together raised or lowered one by one, the shallow layers first, until the sum is right."""
    by = -max(abs(x) for x in (*budgets, *low, *high))

    def cut(by):
        return [min(max(x + by, a), b) for x, a, b in zip(budgets, low, high)]

    while sum(cut(by + 1)) <= total and cut(by) != high:
        by += 1
    out = cut(by)
    for k, more in enumerate(cut(by + 1)):
        if sum(out) < total:
            out[k] = more
    return out


@given(st.integers(1, 400), st.integers(0, 40), st.integers(1, 40), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_budgets_are_the_line_exactly(b, window, layers, beta):
    allocation = Pyramid(window, beta)
    if beta > 1 and Fraction(b - window, beta) < 1:
        with pytest.raises(MethodError, match=f"raise the budget to {window + beta}"):
            allocation.check(b)
        return
    allocation.check(b)
    got = allocation.budgets(torch.tensor([b, b + 1]), layers)[0].tolist()
    assert sum(got) == layers * b and got == sorted(got, reverse=True)
    assert got == (ideal(b, window, layers, beta) if beta > 1 else [b] * layers)
    assert beta == 1 or got[-1] > window


def test_published_numbers():
    """b = 128, W = 8, 32 layers: from 8 + 2·120 − 6 down to 8 + 6."""
    got = Pyramid(8, 20).budgets(torch.tensor([128]), 32)[0]
    assert (got[0], got[-1]) == (242, 14) and int(got.sum()) == 32 * 128


def case(seed, layers, rows, heads, n, held):
    g = torch.Generator().manual_seed(seed)
    resident = torch.arange(n) < torch.randint(held, n + 1, (layers, rows, 1, 1), generator=g)
    protected = resident & (torch.arange(n) < torch.randint(held // 2, (layers, rows, 1, 1), generator=g))
    resident, protected = (x.expand(layers, rows, heads, n) for x in (resident, protected))
    scores = torch.randn(layers, rows, heads, n, generator=g)
    return scores, resident & ~protected, protected, g


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.sampled_from([1, 2, 5, 20]))
@settings(max_examples=100, deadline=None)
def test_equals_the_oracle_where_layers_hold_too_little_or_protect_too_much(seed, layers, beta):
    scores, candidates, protected, g = case(seed, layers, 3, 2, 60, 24)
    window, target = 2, torch.randint(22, 25, (3,), generator=g)
    got = Pyramid(window, beta, layers).allocate(scores, candidates, protected, target)
    assert got.shape == (layers, 3, 2) and got.dtype == torch.int64
    for r, b in enumerate(target.tolist()):
        low = protected[:, r, 0].sum(-1).tolist()
        high = (candidates | protected)[:, r, 0].sum(-1).tolist()
        line = ideal(b, window, layers, beta) if beta > 1 else [b] * layers
        want = moved(line, low, high, layers * b)
        assert [[x - p] * 2 for x, p in zip(want, low)] == got[:, r].tolist()
        assert sum(want) == layers * b


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_null_beta_is_uniform_bit_for_bit(seed, one_score):
    scores, candidates, protected, g = case(seed, 4, 2, 3, 40, 24)
    target = torch.randint(12, 24, (2,), generator=g)
    if one_score:
        scores, candidates, protected = (x[:, :, :1] for x in (scores, candidates, protected))
    got = Pyramid(8, 1, 4).allocate(scores, candidates, protected, target)
    assert torch.equal(got, Uniform().allocate(scores, candidates, protected, target))


def test_budgets_do_not_depend_on_the_current_length():
    for n in (200, 300):
        none = torch.zeros(4, 1, 2, n, dtype=torch.bool)
        got = Pyramid(8, 20).allocate(torch.randn(4, 1, 2, n), ~none, none, torch.tensor([68]))
        assert got[:, 0, 0].tolist() == ideal(68, 8, 4, 20) == [125, 87, 49, 11]


def test_a_layer_that_holds_less_keeps_all_and_the_rest_is_shared_alike():
    none = torch.zeros(4, 1, 1, 100, dtype=torch.bool)
    got = Pyramid(8, 20, 4).allocate(torch.zeros(4, 1, 1, 100), ~none, none, torch.tensor([68]))
    # 25 entries more than layer 0 holds: nine, eight and eight for the others.
    assert got.flatten().tolist() == [100, 96, 57, 19]


def test_a_layer_that_protects_more_keeps_that_and_the_others_pay_alike():
    protected = torch.arange(200).expand(4, 1, 1, 200) < 30
    got = Pyramid(8, 20, 4).allocate(torch.zeros(4, 1, 1, 200), ~protected, protected, torch.tensor([68]))
    # 19 entries too few in layer 3: six, six and seven fewer for the others.
    assert (got.flatten() + 30).tolist() == [119, 81, 42, 30]


def test_heads_that_protect_unequally_keep_equally_many():
    protected = torch.arange(200) < torch.tensor([0, 30])[:, None]
    protected = protected.expand(4, 1, 2, 200)
    got = Pyramid(8, 20, 4).allocate(torch.zeros(4, 1, 2, 200), ~protected, protected, torch.tensor([68]))
    assert got[:, 0].tolist() == [[119, 89], [81, 51], [42, 12], [30, 0]]


def test_the_head_that_holds_least_limits_its_layer():
    held = torch.arange(200) < torch.tensor([100, 150])[:, None]
    none = torch.zeros(4, 1, 2, 200, dtype=torch.bool)
    got = Pyramid(8, 20, 4).allocate(torch.zeros(4, 1, 2, 200), held.expand_as(none), none, torch.tensor([68]))
    assert got[:, 0].tolist() == [[100, 100], [96, 96], [57, 57], [19, 19]]


def test_what_cannot_be_kept_is_refused():
    scores, none = torch.zeros(3, 1, 1, 40), torch.zeros(3, 1, 1, 40, dtype=torch.bool)
    with pytest.raises(MethodError, match="123 entries per head over 3 layers.* 0 are protected.* 120 are there"):
        Pyramid(8, 20, 3).allocate(scores, ~none, none, torch.tensor([41]))
    protected = torch.arange(40).expand_as(none) < 35
    with pytest.raises(MethodError, match="90 entries per head over 3 layers.* 105 are protected"):
        Pyramid(8, 20, 3).allocate(scores, ~protected, protected, torch.tensor([30]))
    with pytest.raises(MethodError, match="20 entries a layer, less a window of 8, divided by beta 20"):
        Pyramid(8, 20, 3).allocate(scores, ~none, none, torch.tensor([20]))
    for bad in ({"beta": 0}, {"window": -1}):
        with pytest.raises(MethodError, match="pyramid"):
            Pyramid(**bad)


def test_a_shared_layer_axis_is_refused_and_one_layer_is_not():
    scores, none = torch.zeros(1, 1, 2, 40), torch.zeros(1, 1, 2, 40, dtype=torch.bool)
    with pytest.raises(MethodError, match="a score for every layer"):
        Pyramid().allocate(scores, ~none, none, torch.tensor([30]))
    with pytest.raises(MethodError, match="a score for every layer"):
        Pyramid().bind(Host(geometry(layers=3))).allocate(scores, ~none, none, torch.tensor([30]))
    bound = Pyramid().bind(Host(geometry(layers=1)))
    assert bound.allocate(scores, ~none, none, torch.tensor([30])).tolist() == [[[30, 30]]]


# -- presets -----------------------------------------------------------------------------------------------------------


def bind(method, geo, tmp_path):
    statistics(geo).save(tmp_path / "s.safetensors")
    return method.bind(Host(geo, str(tmp_path / "s.safetensors")))


@pytest.mark.parametrize("preset, reference", [(TriPyramid, TriAttention), (PyramidKV, SnapKV)])
@pytest.mark.parametrize("params", [{}, {"prompt": "compete"}, {"recent": 9, "sink": 2}])
def test_presets_share_out_the_budget(preset, reference, params, tmp_path):
    geo = geometry(layers=4)
    null = preset.make("p", {**params, "beta": 1})
    e = entries(geo, lengths=(60, 50, 44), needs=bind(null, geo, tmp_path).needs)
    target = torch.tensor([32, 30, 29])
    want = bind(reference.make("r", params), geo, tmp_path).compress(e, target).keep
    assert torch.equal(bind(null, geo, tmp_path).compress(e, target).keep, want)
    method = preset.make("p", params)
    policy = bind(method, geo, tmp_path)
    keep = policy.compress(e, target).keep
    counts = keep.sum(-1)
    assert (counts.sum((0, 2)) == 8 * target).all()
    assert (counts == counts[:, :, :1]).all() and (counts[:-1] >= counts[1:]).all() and (counts[0] > counts[-1]).all()
    assert not (method.protected(e, target) & ~keep).any()
    for r in range(3):
        part = policy.compress(single(e, r), target[r : r + 1]).keep
        assert torch.equal(part[:, 0], keep[:, r, :, : part.shape[-1]])


def test_the_window_is_what_the_preset_keeps():
    assert PyramidKV().allocation() == Pyramid(8, 20) and PyramidKV(recent=12).allocation() == Pyramid(12, 20)
    assert TriPyramid().allocation() == Pyramid(0, 20) and TriPyramid(recent=4, beta=6).allocation() == Pyramid(4, 6)


def test_a_budget_too_small_for_the_deepest_layer_is_refused_before_anything_runs():
    with pytest.raises(MethodError, match="raise the budget to 28"):
        PyramidKV().check(10, 27)
    PyramidKV().check(10, 28)
    PyramidKV(prompt="outside").check(10, 18)
    PyramidKV(beta=1).check(3, 12)
    with pytest.raises(MethodError, match="protected"):
        PyramidKV(beta=1).check(10, 18)


@pytest.mark.parametrize("mode", ["per_head", "global"])
def test_scores_that_are_not_per_layer_are_refused(mode, tmp_path):
    with pytest.raises(MethodError, match=f"mode {mode!r}"):
        TriPyramid.make("tri_pyramid", {"mode": mode})
    geo = geometry()
    with pytest.raises(MethodError, match="a score for every layer"):
        bind(TriPyramid(mode=mode), geo, tmp_path).compress(entries(geo), torch.tensor([24, 23, 22]))


def test_layers_fill_up_to_their_budgets_over_several_events(tmp_path):
    """Slack smaller than the budget: the shallow layer gathers for some events before it has its budget."""
    geo = geometry(layers=4, kv_heads=1)
    policy = bind(TriPyramid(delta=20, prompt="compete"), geo, tmp_path)
    e = entries(geo, lengths=(60,), prompts=(0,))
    counts, held = [], torch.full((4,), 60)
    for _ in range(6):
        keep = policy.compress(e, torch.tensor([40])).keep
        counts.append(keep.sum(-1)[:, 0, 0].tolist())
        assert sum(counts[-1]) == 160
        held = keep.sum(-1)[:, 0, 0] + 20
        n = int(held.max())
        g = torch.Generator().manual_seed(len(counts))
        positions = torch.arange(n).expand(4, 1, 1, n)
        positions = positions.masked_fill(positions >= held.view(4, 1, 1, 1), -1)
        keys = torch.randn(4, 1, 1, n, 16, generator=g)
        e = dataclasses.replace(e, keys=keys, values=keys, positions=positions, length=e.length + 20)
    assert counts[0][0] == 60 and counts[1][0] == ideal(40, 0, 4, 20)[0] == 78
    assert counts[1:] == [ideal(40, 0, 4, 20)] * 5
