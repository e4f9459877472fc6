"""Folding against loops in fp64, and what a fold must keep."""

import math
from dataclasses import replace

import pytest
import torch
from cask_methods.diagnostics import horizon, key_distance
from cask_methods.representations.fold import Fold
from cask_methods.rotary import rotate, unrotate
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single, statistics

from cask_eval.engine.contract import Host, Selection
from cask_eval.errors import MethodError

SMALL = geometry(layers=2, kv_heads=2, groups=2, head_dim=4, scaling=1.2)


def case(groups, lengths, fold, geo=SMALL, seed=0, dtype=torch.float32):
    """Entries, and a selection that folds `groups` (for each row: representative → members) and evicts nothing else."""
    e = entries(geo, lengths, (0,) * len(lengths), seed=seed, needs=fold.needs, dtype=dtype)
    into = torch.where(e.resident[:1, :, :1], torch.arange(max(lengths)), -1)
    for r, row in enumerate(groups):
        for rep, members in row.items():
            into[0, r, 0, members] = rep
    g = torch.Generator().manual_seed(seed + 1)
    support = torch.rand(into.shape, generator=g) * 3
    keep = (into == torch.arange(max(lengths))).expand(e.positions.shape)
    return replace(e, traits={**e.traits, "support": support}), Selection(keep, into)


def softmax_read(query, keys, values, bias):
    """Attention of query [D] over keys and values [n, D] in fp64."""
    z = keys.double() @ query.double() / keys.shape[-1] ** 0.5 + bias.double()
    return z.softmax(0) @ values.double()


GROUPS = [{3: [2, 3, 4], 9: [8, 9]}, {1: [0, 1]}, {}]
LENGTHS = (12, 7, 5)


@pytest.mark.parametrize("operator", ["keepkv", "mean"])
@pytest.mark.parametrize("normaliser", ["sum", "published"])
@pytest.mark.parametrize("representative", ["score_max_source", "weighted_latest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_loop(operator, normaliser, representative, dtype):
    fold = Fold(operator, representative, normaliser, log_mass=True)
    e, selection = case(GROUPS, LENGTHS, fold, dtype=dtype)
    after, _ = fold.represent(e, selection)
    assert after.keys.dtype == after.values.dtype == dtype and after.positions is e.positions
    tight = {"atol": 1e-5} if dtype == torch.float32 else {"atol": 0, "rtol": 2**-8}
    count, support = e.traits["count"][0, :, 0], e.traits["support"][0, :, 0]
    for r, n in enumerate(LENGTHS):
        for j in range(n):
            members = GROUPS[r].get(j, [j])
            assert int(after.traits["count"][0, r, 0, j]) == sum(int(count[r, i]) for i in members)
            if len(members) == 1:
                for a, b in ((e.keys, after.keys), (e.values, after.values)):
                    assert torch.equal(a[:, r, :, j], b[:, r, :, j])
                assert torch.equal(e.traits["log_mass"][0, r, 0, j], after.traits["log_mass"][0, r, 0, j])
                continue
            n_i = [float(count[r, i]) for i in members]
            w = [x * max(float(support[r, i]), 1e-4) for x, i in zip(n_i, members, strict=True)]
            w = w if operator == "keepkv" else n_i
            divisor = sum(w) if normaliser == "sum" else max(sum(w), 1)
            assert float(after.traits["log_mass"][0, r, 0, j]) == pytest.approx(math.log(sum(n_i)))
            for layer in range(2):
                for h in range(2):
                    value = sum(x * e.values[layer, r, h, i].double() for x, i in zip(w, members, strict=True))
                    assert torch.allclose(after.values[layer, r, h, j].double(), value / divisor, **tight)
                    key = e.keys[layer, r, h, j].double()
                    if representative == "weighted_latest":
                        at = e.positions[layer, r, h]
                        plain = [unrotate(e.keys[layer, r, h, i].double(), at[i], SMALL) for i in members]
                        mean = sum(x * k for x, k in zip(w, plain, strict=True)) / sum(w)
                        key = rotate(mean, at[j], SMALL)
                    assert torch.allclose(after.keys[layer, r, h, j].double(), key, **tight)
                    if representative == "score_max_source":
                        assert torch.equal(after.keys[layer, r, h, j], e.keys[layer, r, h, j])


def test_published_normaliser_shrinks_values_of_low_support():
    """22 sources of support near 3.4e-4, as in cask.md §1.8: nearly nothing is left of the values."""
    fold = Fold(normaliser="published")
    e, selection = case([{0: list(range(22))}], (22,), fold)
    ones = torch.ones_like(e.traits["count"])
    e = replace(e, values=torch.ones_like(e.values), traits={"count": ones, "support": ones * 4.4e-4})
    got = fold.represent(e, selection)[0].values[..., 0, :]
    assert torch.allclose(got, torch.full_like(got, 22 * 4.4e-4))
    got = replace(fold, normaliser="sum").represent(e, selection)[0].values[..., 0, :]
    assert torch.allclose(got, torch.ones_like(got))


def test_zero_supports_weigh_alike():
    fold = Fold()
    e, selection = case([{1: [0, 1, 2]}], (6,), fold)
    one = torch.ones_like(e.traits["count"])
    e = replace(e, traits={"count": one, "support": one * 0.0})
    got = fold.represent(e, selection)[0].values[:, 0, :, 1]
    assert torch.allclose(got, e.values[:, 0, :, :3].mean(2), atol=1e-6)


@given(st.integers(0, 2**31), st.integers(2, 6))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("representative", ["score_max_source", "weighted_latest"])
def test_identical_members_with_log_mass_reproduce_full_attention(representative, seed, size):
    """Members alike before rotation, for weighted_latest at their own positions; for score_max_source as cached."""
    fold = Fold("keepkv", representative, log_mass=True)
    e, selection = case([{size: list(range(1, size + 1))}], (10,), fold, seed=seed)
    values = e.values.clone()
    values[..., 1 : size + 1, :] = values[..., 1:2, :]
    if representative == "score_max_source":
        keys = e.keys.clone()
        keys[..., 1 : size + 1, :] = keys[..., 1:2, :]
    else:
        plain = unrotate(e.keys, e.positions, SMALL)
        plain[..., 1 : size + 1, :] = plain[..., 1:2, :]
        # The same rotated key again: only then is the full attention that of one key.
        e = replace(e, positions=e.positions.index_fill(3, torch.arange(1, size + 1), 1))
        keys = rotate(plain, e.positions, SMALL)
    one = torch.ones_like(e.traits["count"])
    e = replace(e, keys=keys, values=values, traits={**e.traits, "count": one, "log_mass": one * 0.0})
    after, _ = fold.represent(e, selection)
    keep, query = selection.keep[0, 0, 0], torch.randn(4, generator=torch.Generator().manual_seed(seed))
    for layer in range(2):
        for h in range(2):
            full = softmax_read(query, e.keys[layer, 0, h], e.values[layer, 0, h], torch.zeros(10))
            read = softmax_read(
                query,
                after.keys[layer, 0, h][keep],
                after.values[layer, 0, h][keep],
                after.traits["log_mass"][0, 0, 0][keep],
            )
            assert torch.allclose(full, read, atol=1e-5)


def test_a_mean_of_one_key_at_two_positions_keeps_its_norm():
    """Un-rotating first: the rotated keys of positions 7 and 900 would average to a fraction of their norm."""
    geo = geometry(layers=1, kv_heads=1, groups=1, head_dim=16)
    fold = Fold("mean", "weighted_latest")
    e, selection = case([{1: [0, 1]}], (4,), fold, geo=geo)
    positions = torch.tensor([7, 900, 901, 902]).view(1, 1, 1, 4)
    plain = e.keys[..., :1, :].expand_as(e.keys)
    e = replace(e, positions=positions, keys=rotate(plain, positions, geo))
    got = fold.represent(e, selection)[0].keys[0, 0, 0, 1]
    assert torch.allclose(got, e.keys[0, 0, 0, 1], atol=1e-6)
    assert float(e.keys[0, 0, 0, :2].mean(0).norm() / got.norm()) < 0.9


def test_counts_and_values_over_repeated_events():
    """Folds of folds weigh every token once: a mean of means by count is the mean of all."""
    fold = Fold("mean", log_mass=True)
    e, first = case([{2: [0, 1, 2], 4: [3, 4]}], (8,), fold)
    one = torch.ones_like(e.traits["count"])
    e = replace(e, traits={"count": one, "log_mass": one * 0.0})
    after, _ = fold.represent(e, first)
    again = torch.tensor([-1, -1, 4, -1, 4, 5, 6, 7]).view(1, 1, 1, 8)
    last, _ = fold.represent(after, Selection((again == torch.arange(8)).expand(e.positions.shape), again))
    assert last.traits["count"][0, 0, 0, 4:].tolist() == [5, 1, 1, 1]
    assert torch.allclose(last.values[..., 4, :], e.values[..., :5, :].mean(3), atol=1e-6)


def test_batches_equal_singles():
    fold = Fold("keepkv", "weighted_latest", statistics=statistics(SMALL))
    e, selection = case(GROUPS, LENGTHS, fold)
    batch, measures = fold.represent(e, selection)
    for r, n in enumerate(LENGTHS):
        alone = Selection(selection.keep[:, r : r + 1, :, :n], selection.into[:, r : r + 1, :, :n])
        got, own = fold.represent(single(e, r), alone)
        assert torch.equal(got.keys[:, 0], batch.keys[:, r, :, :n])
        assert torch.equal(got.values[:, 0], batch.values[:, r, :, :n])
        if not GROUPS[r]:
            assert not own and all(math.isnan(m[r]) for m in measures.values())
        for name, value in own.items():
            assert float(value) == pytest.approx(float(measures[name][r]), rel=1e-6)


def test_layers_in_pieces_are_the_same(monkeypatch):
    fold = Fold("keepkv", "weighted_latest", statistics=statistics(SMALL))
    e, selection = case(GROUPS, LENGTHS, fold)
    whole, measures = fold.represent(e, selection)
    monkeypatch.setattr("cask_methods.representations.fold._CHUNK_ELEMENTS", 1)
    parts, again = fold.represent(e, selection)
    resident = e.resident
    assert torch.equal(whole.keys[resident], parts.keys[resident])
    assert torch.equal(whole.values[resident], parts.values[resident])
    for name, value in measures.items():
        assert torch.allclose(value, again[name], equal_nan=True)


def test_measures_equal_loops():
    """Every group, layer and head on its own, with plain exponentials."""
    stats = statistics(SMALL, dtype=torch.float64)
    for representative in ("score_max_source", "weighted_latest"):
        fold = Fold("keepkv", representative, statistics=stats)
        e, selection = case(GROUPS, LENGTHS, fold)
        after, got = fold.represent(e, selection)
        kappa = horizon(SMALL.inv_freq)
        count, support = e.traits["count"][0, :, 0], e.traits["support"][0, :, 0]
        for r in range(2):
            far, plain_error, counted_error = [], [], []
            for rep, members in GROUPS[r].items():
                w = [float(count[r, i] * support[r, i].clamp_min(1e-4)) for i in members]
                for layer in range(2):
                    for head in range(4):
                        h, at = head // 2, e.positions[layer, r, head // 2]
                        keys = e.keys[layer, r, h].double()
                        new = after.keys[layer, r, h, rep].double()
                        centre = torch.cat([stats.c_re[layer, head], stats.c_im[layer, head]])
                        query = rotate(centre, e.length[r], SMALL)
                        z = [float(query @ keys[i]) / 2 for i in members]
                        n = [int(count[r, i]) for i in members]
                        z_new = float(query @ new) / 2
                        plain_error.append(abs(math.log(sum(map(math.exp, z))) - z_new))
                        mass = sum(x * math.exp(y) for x, y in zip(n, z, strict=True))
                        counted_error.append(abs(math.log(mass) - z_new - math.log(sum(n))))
                        if head % 2:
                            continue
                        home = unrotate(new, at[rep], SMALL)
                        away = [float(key_distance(unrotate(keys[i], at[i], SMALL), home, kappa)) for i in members]
                        far.append(sum(x * d for x, d in zip(w, away, strict=True)) / sum(w))
            for name, values in (
                ("kappa_dispersion", far),
                ("log_mass_error", plain_error),
                ("log_mass_error_counted", counted_error),
            ):
                assert float(got[name][r]) == pytest.approx(sum(values) / len(values), rel=1e-4)
        assert all(math.isnan(value[2]) for value in got.values())


def test_without_statistics_only_the_dispersion_is_measured():
    fold = Fold()
    e, selection = case(GROUPS, LENGTHS, fold)
    assert list(fold.represent(e, selection)[1]) == ["kappa_dispersion"]


def test_nothing_folded_is_nothing_done():
    fold = Fold()
    e, selection = case([{}, {}, {}], LENGTHS, fold)
    assert fold.represent(e, selection) == (e, {})
    assert fold.represent(e, replace(selection, into=None)) == (e, {})


def test_what_it_cannot_fold():
    fold = Fold()
    e, selection = case(GROUPS, LENGTHS, fold)
    with pytest.raises(MethodError, match="one selection"):
        fold.represent(e, replace(selection, into=selection.into.expand(2, -1, -1, -1)))
    bare = replace(e, traits={"count": e.traits["count"]})
    with pytest.raises(MethodError, match="gives none; use 'mean'"):
        fold.represent(bare, selection)
    Fold("mean").represent(bare, selection)


def test_binding_reads_statistics(tmp_path):
    statistics(SMALL).save(tmp_path / "s.safetensors")
    assert Fold().bind(Host(SMALL, str(tmp_path / "s.safetensors"))).statistics is not None
    assert Fold().bind(Host(SMALL)) == Fold()
    with pytest.raises(MethodError, match="do not fit"):
        Fold().bind(Host(geometry(layers=4), str(tmp_path / "s.safetensors")))


def test_needs():
    assert set(Fold().needs.traits) == {"count"} and not Fold().needs.bias
    needs = Fold(log_mass=True).needs
    assert needs.bias == "log_mass" and needs.traits["log_mass"].shared and needs.traits["log_mass"].start == 0
