"""α's selector against a slow fp64 oracle and against what its rule implies."""

import dataclasses
import math

import pytest
import torch
from cask_methods.selectors.diverse import Diverse, greedy, spread, unit_vectors
from cask_methods.selectors.top_k import TopK
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single


def cosine(a, b):
    na, nb = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb) if na and nb else 0.0


def oracle(scores, vectors, candidates, quota, lam, tau="std", agree_with=None):
    """One row, straight from the definition. vectors: a list of per-layer lists. Follows `agree_with` (a set) when the
    two best gains are closer than 1e-5, so that rounding alone never fails a test."""
    s = [float(x) for x in scores]
    pool = [i for i in range(len(s)) if candidates[i]]
    mean = sum(s[i] for i in pool) / len(pool)
    unit = {
        "std": math.sqrt(sum((s[i] - mean) ** 2 for i in pool) / len(pool)),
        "1": 1.0,
        "range": max(s[i] for i in pool) - min(s[i] for i in pool),
    }[tau]
    picked = []
    while len(picked) < quota:

        def gain(i):
            likeness = [sum(cosine(v[i], v[j]) for v in vectors) / len(vectors) for j in picked]
            return s[i] - lam * unit * max([0.0, *likeness])

        gains = {i: gain(i) for i in pool if i not in picked}
        best = max(gains.values())
        close = [i for i in gains if gains[i] > best - 1e-5]
        chosen = [i for i in close if agree_with is None or i in agree_with]
        picked.append((chosen or close)[0] if len(close) > 1 else close[0])
    return picked


def row(values, scores, candidates=None):
    """One row as tensors of the selector's shapes: values [n, D], scores [n]."""
    values = torch.as_tensor(values, dtype=torch.float32)[None, None, None]
    scores = torch.as_tensor(scores, dtype=torch.float32)[None, None, None]
    mask = torch.ones_like(scores, dtype=torch.bool) if candidates is None else candidates[None, None, None]
    geo = geometry(layers=1, kv_heads=1, head_dim=values.shape[-1] + values.shape[-1] % 2)
    e = entries(geo, lengths=(scores.shape[-1],), prompts=(0,))
    return dataclasses.replace(e, values=values), scores, mask


def picks(values, scores, quota, **kw):
    e, s, mask = row(values, scores)
    got = Diverse(**kw).select(s, mask, torch.tensor([[[quota]]]), e)
    return set(got[0, 0, 0].nonzero().flatten().tolist())


def order(values, scores, quota, lam, path="gram"):
    e, s, mask = row(values, scores)
    weight = lam * spread(s, mask, "std") if lam else torch.zeros(1, 1, 1, 1)
    n = s.shape[-1]
    return greedy(
        s.view(1, n),
        mask.view(1, n),
        weight.view(1, 1),
        unit_vectors(e.values, mask).view(1, n, -1),
        torch.tensor([quota]),
        path,
    )[0].tolist()


@pytest.mark.parametrize("path", ["gram", "incremental"])
@pytest.mark.parametrize("tau", ["std", "1", "range"])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_the_fp64_oracle(path, tau, shared):
    geo = geometry(head_dim=8)
    e = entries(geo, lengths=(24, 17, 9), prompts=(3, 2, 1))
    # Values in few clusters, so that the penalty decides much.
    g = torch.Generator().manual_seed(5)
    hubs = torch.randn(5, 8, generator=g)
    noise = torch.randn(e.values.shape, generator=g) * 0.3
    e = dataclasses.replace(e, values=hubs[torch.randint(5, e.values.shape[:-1], generator=g)] + noise)
    candidates = (e.positions >= 0) & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    if shared:
        candidates = candidates[:1]
    scores = torch.randn(candidates.shape, generator=g)
    quota = torch.tensor([12, 7, 8])[None, :, None].expand(candidates.shape[:-1])
    got = Diverse(0.7, tau, path=path).select(scores, candidates, quota, e)
    for layer in range(candidates.shape[0]):
        for r in range(3):
            for h in range(geo.kv_heads):
                mine = set(got[layer, r, h].nonzero().flatten().tolist())
                layers = range(geo.layers) if shared else [layer]
                want = oracle(
                    scores[layer, r, h],
                    [e.values[k, r, h].tolist() for k in layers],
                    candidates[layer, r, h],
                    int(quota[layer, r, h]),
                    0.7,
                    tau,
                    agree_with=mine,
                )
                assert mine == set(want)


def test_sharing_over_layers_takes_the_mean_cosine():
    geo = geometry(layers=3, head_dim=8)
    e = entries(geo, lengths=(6,), prompts=(0,))
    unit = unit_vectors(e.values, torch.ones(1, 1, geo.kv_heads, 6, dtype=torch.bool))
    assert unit.shape == (1, 1, geo.kv_heads, 6, 24)
    want = torch.nn.functional.cosine_similarity(e.values[..., None, :], e.values[..., None, :, :], dim=-1).mean(0)
    assert torch.allclose((unit @ unit.transpose(-1, -2))[0], want, atol=1e-5)
    unit = unit_vectors(e.values, torch.ones(1, 1, 1, 6, dtype=torch.bool))
    assert unit.shape == (1, 1, 1, 6, 48)
    assert torch.allclose((unit @ unit.transpose(-1, -2))[0, :, 0], want.mean(1), atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_null_setting_is_the_stable_top_k(seed, n, levels, constant):
    """λ = 0 bit for bit, with many ties; and the greedy loop itself at weight 0 gives the same order."""
    g = torch.Generator().manual_seed(seed)
    e = entries(geometry(layers=1, kv_heads=1, head_dim=4), lengths=(n,), prompts=(0,), seed=seed)
    scores = torch.randint(levels, (1, 1, 1, n), generator=g).float() * (0.0 if constant else 0.1)
    mask = torch.rand(1, 1, 1, n, generator=g) < 0.8
    quota = torch.randint(int(mask.sum()) + 1, (1, 1, 1), generator=g)
    want = TopK().select(scores, mask, quota, e)
    assert torch.equal(Diverse(0.0).select(scores, mask, quota, e), want)
    stable = [i for _, i in sorted((-float(scores[0, 0, 0, i]), i) for i in range(n) if mask[0, 0, 0, i])][: int(quota)]
    assert set(stable) == set(want[0, 0, 0].nonzero().flatten().tolist())
    for path in ("gram", "incremental"):
        got = greedy(
            scores.view(1, n),
            mask.view(1, n),
            torch.zeros(1, 1),
            unit_vectors(e.values, mask).view(1, n, -1),
            quota.view(1),
            path,
        )
        assert got[0].tolist() == stable


def test_constant_scores_keep_the_lowest_positions_at_any_lambda():
    """No spread, no penalty: τ = 0."""
    assert picks(torch.ones(6, 4), torch.full((6,), 0.3), 3, lambda_=1.0) == {0, 1, 2}


def test_a_duplicate_is_displaced_once_the_penalty_exceeds_its_lead():
    values = [[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    scores = [1.0, 0.9, 0.5, -2.0]
    tau = float(torch.tensor(scores).std(correction=0))
    lead = 0.9 - 0.5
    assert picks(values, scores, 2, lambda_=0.99 * lead / tau) == {0, 1}
    assert picks(values, scores, 2, lambda_=1.01 * lead / tau) == {0, 2}


def test_huge_lambda_is_farthest_first_after_the_first_pick():
    g = torch.Generator().manual_seed(3)
    values, scores = torch.rand(12, 4, generator=g), torch.randn(12, generator=g)
    unit = torch.nn.functional.normalize(values, dim=-1).double()
    picked = [int(scores.argmax())]
    while len(picked) < 6:
        near = (unit @ unit[picked].T).amax(-1)
        near[picked] = torch.inf
        picked.append(int(near.argmin()))
    assert order(values, scores, 6, 1e6) == picked


def test_scores_break_ties_of_a_huge_lambda():
    values = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [1.0, 0, 0, 0]]
    assert order(values, [3.0, 0.1, 0.2, 2.0], 4, 1e6) == [0, 2, 1, 3]


@pytest.mark.parametrize("lam", [0.1, 1.0, 50.0])
def test_orthogonal_values_give_the_top_k(lam):
    scores = torch.randn(8, generator=torch.Generator().manual_seed(1))
    assert order(torch.eye(8), scores, 8, lam) == scores.argsort(descending=True, stable=True).tolist()


def test_opposite_and_zero_values_are_never_rewarded():
    values = [[1.0, 0], [-1.0, 0], [0, 0.0], [0, 1.0]]
    assert order(values, [4.0, 1.0, 3.0, 2.0], 4, 5.0) == [0, 2, 3, 1]


@given(st.integers(0, 2**32 - 1), st.integers(-8, 8), st.integers(-4, 4))
@settings(max_examples=30, deadline=None)
def test_invariant_to_the_scores_scale_and_shift(seed, power, shift):
    """By a power of two and by a shift that fp32 represents, on scores with room for it."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(16, 6, generator=g)
    scores = torch.randint(-512, 512, (16,), generator=g) / 64
    base = picks(values, scores, 7, lambda_=0.5)
    assert picks(values, scores * 2.0**power, 7, lambda_=0.5) == base
    assert picks(values, scores + shift, 7, lambda_=0.5) == base


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_length_of_a_value_is_irrelevant(seed):
    g = torch.Generator().manual_seed(seed)
    values, scores = torch.randn(16, 6, generator=g), torch.randn(16, generator=g)
    factors = 2.0 ** torch.randint(-40, 40, (16, 1), generator=g)
    assert picks(values * factors, scores, 7, lambda_=0.8) == picks(values, scores, 7, lambda_=0.8)


@pytest.mark.parametrize("path", ["gram", "incremental", "auto"])
@pytest.mark.parametrize("quota", [0, 1, 10])
def test_quota_of_none_one_and_all(path, quota):
    g = torch.Generator().manual_seed(0)
    values, scores = torch.randn(10, 4, generator=g), torch.randn(10, generator=g)
    want = {0: set(), 1: {int(scores.argmax())}, 10: set(range(10))}[quota]
    assert picks(values, scores, quota, lambda_=0.5, path=path) == want


def test_rows_of_unequal_quota_equal_rows_on_their_own():
    geo = geometry()
    e = entries(geo, lengths=(20, 14, 7))
    candidates = e.positions >= 0
    scores = torch.randn(candidates.shape, generator=torch.Generator().manual_seed(9))
    for shared in (False, True):
        mask = candidates[:1] if shared else candidates
        quota = torch.tensor([3, 9, 7])[None, :, None].expand(mask.shape[:-1])
        batch = Diverse().select(scores[: len(mask)], mask, quota, e)
        for r in range(3):
            alone = single(e, r)
            n = alone.positions.shape[-1]
            got = Diverse().select(
                scores[: len(mask), r : r + 1, :, :n], mask[:, r : r + 1, :, :n], quota[:, r : r + 1], alone
            )
            assert torch.equal(got, batch[:, r : r + 1, :, :n])
            assert not batch[:, r, :, n:].any()


def test_rows_in_blocks_give_the_same_picks(monkeypatch):
    e = entries(geometry(), lengths=(20, 14, 7))
    mask = e.positions >= 0
    scores = torch.randn(mask.shape, generator=torch.Generator().manual_seed(9))
    quota = torch.tensor([8, 9, 7])[None, :, None].expand(mask.shape[:-1])
    whole = Diverse(path="gram").select(scores, mask, quota, e)
    for rows in (0, 1, 5):
        monkeypatch.setattr("cask_methods.selectors.diverse._GRAM_BYTES", rows * 20 * 20 * 4)
        assert torch.equal(Diverse(path="gram").select(scores, mask, quota, e), whole)
        assert torch.equal(Diverse().select(scores, mask, quota, e), whole)


def test_spaces_differ_as_named():
    """Two values that share a large mean resemble each other until it is taken away; keys are another matter."""
    values = torch.tensor([[10.0, 1, 0], [10, -1, 0], [10, 0, 1], [10, 0, -1]])
    e, scores, mask = row(values, [4.0, 3.0, 2.0, 1.0])
    keys = torch.tensor([[1.0, 0], [0, 1], [0, 1], [-1, 0]])[None, None, None]
    e = dataclasses.replace(e, keys=keys)
    for space, want in (("values", 0.98), ("values_centred", -1.0), ("keys", 0.0)):
        unit = unit_vectors(e.keys if space == "keys" else e.values, mask, centred=space == "values_centred")[0, 0, 0]
        assert float(unit[0] @ unit[1]) == pytest.approx(want, abs=0.01)
    two = torch.tensor([[[2]]])
    got = {
        s: Diverse(2.0, "std", s).select(scores, mask, two, e)[0, 0, 0].tolist()
        for s in ("values", "values_centred", "keys")
    }
    assert got["values_centred"] == got["keys"] == [True, True, False, False]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_what_is_not_finite(bad):
    values, scores = torch.randn(5, 4), torch.arange(5.0)
    with pytest.raises(FloatingPointError):
        picks(values.index_fill(0, torch.tensor(2), bad), scores, 2)
    with pytest.raises(FloatingPointError):
        picks(values, scores.index_fill(0, torch.tensor(2), bad), 2)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_degenerate_values_still_give_exact_counts(fill):
    """All values zero is the top-k; all identical too, for the penalty then falls on all alike."""
    scores = torch.randn(9, generator=torch.Generator().manual_seed(4))
    top = set(scores.topk(4).indices.tolist())
    assert picks(torch.full((9, 3), fill), scores, 4, lambda_=0.7) == top
