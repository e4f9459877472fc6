"""Merging on eviction (M2) against loops in fp64, and the preset against its reference."""

import math
from dataclasses import replace

import pytest
import torch
from cask_methods.presets.tri_merge import TriMerge
from cask_methods.presets.triattention import TriAttention
from cask_methods.representations.merge_on_evict import MergeOnEvict
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single, statistics

from cask_eval.engine.contract import Host, Selection
from cask_eval.errors import MethodError

GEO = geometry(layers=2, kv_heads=2, groups=1, head_dim=4)
LENGTHS = (14, 9, 5)


def case(merge, lengths=LENGTHS, geo=GEO, seed=0, hubs=0, dtype=torch.float32, share=0.5):
    """Entries, with keys from `hubs` directions if given, and a random selection of at least one entry a head."""
    e = entries(geo, lengths, (0,) * len(lengths), seed=seed, needs=merge.needs, dtype=dtype)
    g = torch.Generator().manual_seed(seed + 1)
    if hubs:
        centres = torch.randint(-2, 3, (hubs, geo.head_dim), generator=g).to(dtype)
        keys = centres[torch.randint(hubs, e.positions.shape, generator=g)]
        e = replace(e, keys=keys.masked_fill(~e.resident.unsqueeze(-1), torch.nan))
    keep = (torch.rand(e.positions.shape, generator=g) < share) & e.resident
    keep[..., 1] = True
    return e, Selection(keep)


def cosine(a, b):
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def oracle(e, keep, merge, layer, r, h):
    """Values and weights of one head after merging, and the cosines of what was merged."""
    n = int((e.positions[layer, r, h] >= 0).sum())
    keys, values = e.keys[layer, r, h].double(), e.values[layer, r, h].double()
    weight = e.traits["weight"][layer, r, h].tolist()
    kept = [j for j in range(n) if keep[layer, r, h, j]]
    gone = [j for j in range(n) if not keep[layer, r, h, j]]
    near = {}
    for i in gone:
        likeness = [round(cosine(keys[i], keys[j]) * 2**20) for j in kept]
        near[i] = (max(likeness) / 2**20, kept[likeness.index(max(likeness))])
    first = sorted(gone, key=lambda i: (-near[i][0], i))[: round(merge.fraction * len(gone))]
    first = [i for i in first if near[i][0] >= merge.threshold]
    out = {}
    for j in kept:
        takes = [i for i in first if near[i][1] == j]
        total = weight[j] + sum(weight[i] for i in takes)
        value = sum((weight[i] * values[i] for i in [j, *takes]), torch.zeros(4, dtype=torch.float64)) / total
        out[j] = value, total, takes
    return out, [near[i][0] for i in first], len(gone)


@given(
    st.integers(0, 2**31),
    st.sampled_from([0, 2, 5]),
    st.sampled_from([-1.0, 0.3, 0.8, 1.0]),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(seed, hubs, threshold, fraction, log_mass):
    merge = MergeOnEvict(threshold, fraction, log_mass)
    e, selection = case(merge, seed=seed, hubs=hubs)
    after, measures = merge.represent(e, selection)
    assert after.keys is e.keys and after.positions is e.positions
    for r in range(3):
        merged, cosines, gone = 0, 0.0, 0
        for layer in range(2):
            for h in range(2):
                want, near, lost = oracle(e, selection.keep, merge, layer, r, h)
                merged, cosines, gone = merged + len(near), cosines + sum(near), gone + lost
                for j, (value, total, takes) in want.items():
                    got = after.values[layer, r, h, j]
                    assert torch.allclose(got.double(), value, atol=1e-5)
                    assert float(after.traits["weight"][layer, r, h, j]) == pytest.approx(total, rel=1e-6)
                    if log_mass:
                        log = float(after.traits["log_mass"][layer, r, h, j])
                        assert log == pytest.approx(math.log(total), abs=1e-5)
                    if not takes:
                        assert torch.equal(got, e.values[layer, r, h, j])
        if gone:
            assert float(measures["merged_share"][r]) == pytest.approx(merged / gone)
        if merged:
            assert float(measures["merged_cosine"][r]) == pytest.approx(cosines / merged, abs=1e-6)
        else:
            assert math.isnan(measures["merged_cosine"][r])


def test_fraction_zero_is_plain_eviction():
    merge = MergeOnEvict(fraction=0.0)
    e, selection = case(merge)
    assert merge.represent(e, selection) == (e, {})
    assert not merge.needs.traits and not MergeOnEvict(fraction=0.0, log_mass=True).needs.bias


def test_one_copy_of_a_key_takes_all_others_and_reproduces_full_attention():
    """Members alike in key and value, with the logarithm of their number as bias; over several events in a row."""
    merge = MergeOnEvict(0.999, 1.0, True)
    geo = geometry(layers=1, kv_heads=1, groups=1, head_dim=4)
    e, _ = case(merge, (12,), geo)
    which = torch.tensor([0, 1, 0, 2, 0, 1, 1, 0, 2, 0, 1, 2])
    keys, values = e.keys[0, 0, 0, :3], e.values[0, 0, 0, :3]
    one = torch.ones_like(e.traits["weight"])
    e = replace(e, keys=keys[which].expand_as(e.keys), values=values[which].expand_as(e.values))
    e = replace(e, traits={"weight": one, "log_mass": one * 0})
    query = torch.randn(4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def read(e, keep):
        z = e.keys[0, 0, 0][keep].double() @ query + e.traits["log_mass"][0, 0, 0][keep].double()
        return z.softmax(0) @ e.values[0, 0, 0][keep].double()

    full, left = read(e, slice(None)), list(range(12))
    for keep in ([1, 2, 3, 4, 6, 8, 9], [2, 3, 4, 6], [3, 4, 6]):
        mask = torch.zeros(1, 1, 1, 12, dtype=torch.bool)
        mask[..., keep] = True
        # What earlier events evicted is no longer resident.
        gone = torch.ones(12, dtype=torch.bool)
        gone[left] = False
        e = replace(e, positions=e.positions.masked_fill(gone, -1))
        before = float(e.traits["weight"][..., left].sum())
        e, _ = merge.represent(e, Selection(mask))
        left = keep
        assert float(e.traits["weight"][..., left].sum()) == pytest.approx(before)
        assert torch.allclose(read(e, torch.tensor(left)), full, atol=1e-5)
    assert e.traits["weight"][0, 0, 0, left].tolist() == [3, 5, 4]


@given(st.integers(0, 2**31), st.sampled_from([-1.0, 0.5]))
@settings(max_examples=25, deadline=None)
def test_weights_are_conserved_but_for_what_is_not_merged(seed, threshold):
    merge = MergeOnEvict(threshold)
    e, selection = case(merge, seed=seed)
    after, measures = merge.represent(e, selection)
    weight = e.traits["weight"].masked_fill(~e.resident, 0)
    kept = after.traits["weight"].masked_fill(~selection.keep, 0)
    if threshold == -1:
        assert torch.allclose(kept.sum(-1), weight.sum(-1))
        assert (measures["merged_share"].nan_to_num(1) == 1).all()
    assert (kept.sum(-1) <= weight.sum(-1) + 1e-4).all() and (
        kept + 1e-6 >= weight.masked_fill(~selection.keep, 0)
    ).all()


def test_batches_equal_singles():
    merge = MergeOnEvict(0.2, 0.8, True)
    e, selection = case(merge, hubs=3)
    batch, measures = merge.represent(e, selection)
    for r, n in enumerate(LENGTHS):
        got, own = merge.represent(single(e, r), Selection(selection.keep[:, r : r + 1, :, :n]))
        assert torch.equal(got.values[:, 0], batch.values[:, r, :, :n])
        assert torch.equal(got.traits["weight"][:, 0], batch.traits["weight"][:, r, :, :n])
        for name, value in own.items():
            assert torch.allclose(value[0], measures[name][r], equal_nan=True)


def test_layers_in_pieces_are_the_same(monkeypatch):
    merge = MergeOnEvict(0.2)
    e, selection = case(merge)
    whole, measures = merge.represent(e, selection)
    monkeypatch.setattr("cask_methods.representations.merge_on_evict._CHUNK_ELEMENTS", 1)
    parts, again = merge.represent(e, selection)
    assert torch.equal(whole.values[e.resident], parts.values[e.resident])
    for name, value in measures.items():
        assert torch.allclose(value, again[name], equal_nan=True)


def test_half_precision_is_merged_in_full():
    merge = MergeOnEvict(-1.0)
    e, selection = case(merge, dtype=torch.bfloat16)
    got = merge.represent(e, selection)[0].values
    exact = merge.represent(replace(e, keys=e.keys.float(), values=e.values.float()), selection)[0].values
    assert got.dtype == torch.bfloat16
    assert torch.equal(got[selection.keep], exact.bfloat16()[selection.keep])


def test_adversarial_input():
    """Zero keys resemble nothing, identical ones go to the first, a spike stays finite, no NaN gets through."""
    merge = MergeOnEvict(0.5)
    e, _ = case(merge, (6,))
    keep = torch.tensor([False, True, False, True, False, False]).expand(e.positions.shape)
    one = torch.ones_like(e.traits["weight"])
    e = replace(e, traits={"weight": one})
    after, measures = merge.represent(replace(e, keys=e.keys * 0), Selection(keep))
    assert torch.equal(after.values, e.values) and float(measures["merged_share"]) == 0
    after, _ = merge.represent(replace(e, keys=e.keys * 0 + 1), Selection(keep))
    assert (after.traits["weight"][..., 1] == 5).all() and (after.traits["weight"][..., 3] == 1).all()
    keys = e.keys.clone()
    keys[..., 2, :] = 1e30
    assert torch.isfinite(merge.represent(replace(e, keys=keys), Selection(keep))[0].values).all()
    for bad in (torch.nan, torch.inf):
        with pytest.raises(FloatingPointError, match="keys"):
            merge.represent(replace(e, keys=e.keys.index_fill(3, torch.tensor(2), bad)), Selection(keep))
        with pytest.raises(FloatingPointError, match="values"):
            merge.represent(
                replace(e, keys=e.keys * 0 + 1, values=e.values.index_fill(3, torch.tensor(2), bad)), Selection(keep)
            )


def test_nothing_kept_or_nothing_evicted():
    merge = MergeOnEvict()
    e, selection = case(merge)
    assert merge.represent(e, Selection(e.resident)) == (e, {})
    assert merge.represent(e, Selection(e.resident & False)) == (e, {})
    # One head keeps nothing, the others do.
    selection.keep[0, 0, 0] = False
    after, _ = merge.represent(e, selection)
    assert torch.equal(after.values[0, 0, 0], e.values[0, 0, 0])


# -- the preset --------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    geo = geometry()
    statistics(geo).save(tmp_path / "s.safetensors")
    return Host(geo, str(tmp_path / "s.safetensors"))


@pytest.mark.parametrize("mode", ["per_layer_head", "per_head", "global"])
def test_keeps_what_triattention_keeps(mode, host):
    target = torch.tensor([12, 9, 6])
    merged = TriMerge(mode=mode, threshold=-1.0).bind(host)
    plain, null = TriAttention(mode=mode).bind(host), TriMerge(mode=mode, fraction=0.0).bind(host)
    e = entries(host.geometry, needs=merged.needs)
    want, got, off = (p.compress(e, target) for p in (plain, merged, null))
    assert torch.equal(got.keep, want.keep) and torch.equal(off.keep, want.keep)
    assert off.entries.values is e.values and off.entries.keys is e.keys and not off.measures
    assert torch.equal(got.entries.keys[e.resident], e.keys[e.resident])
    assert not torch.equal(got.entries.values[want.keep], e.values[want.keep])


def test_the_null_setting_stores_nothing_more(host):
    geo = host.geometry
    assert TriMerge(fraction=0.0).footprint(geo) == TriAttention().footprint(geo)
    assert TriMerge().footprint(geo).trait_bytes == 4 and TriMerge(log_mass=True).footprint(geo).trait_bytes == 8


def test_parameters():
    assert TriMerge.mechanism == "M2" and TriMerge.reference == "triattention"
    assert TriMerge.parameters()["fraction"].metadata["null"] == 0.0
    made = TriMerge.make("tri_merge", {"fraction": "0.5", "threshold": "-0.5", "log_mass": True})
    assert made.representation() == MergeOnEvict(-0.5, 0.5, True)
    for bad in ({"fraction": "1.5"}, {"fraction": "-0.1"}, {"threshold": "1.1"}, {"threshold": "-2"}):
        with pytest.raises(MethodError, match="at (most|least)"):
            TriMerge.make("tri_merge", bad)
