"""R-KV: redundancy against plain loops, what it makes of duplicates, and λ = 1."""

import dataclasses
import math

import attention_oracle as oracle
import pytest
import torch
from cask_methods import redundancy as module
from cask_methods.presets.r_kv import RKV
from cask_methods.presets.snapkv import SnapKV
from cask_methods.redundancy import redundancy
from cask_methods.scorers.r_kv import RKVScorer
from cask_methods.scorers.snapkv import SnapKVScorer
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single

from cask_eval.engine.contract import Host, Needs
from cask_eval.errors import MethodError

TARGET = torch.tensor([14, 10, 6])
SMALL = {"window": 3, "recent": 3}


def case(seed=0, **kw):
    """Keys in few clusters, so that many cosines exceed one half and others do not."""
    e = entries(geometry(), seed=seed, needs=Needs(queries=3), **kw)
    g = torch.Generator().manual_seed(seed + 1)
    hubs = torch.randn(4, 16, generator=g)
    noisy = hubs[torch.randint(4, e.positions.shape, generator=g)] + 0.5 * torch.randn(e.keys.shape, generator=g)
    return dataclasses.replace(e, keys=torch.where(e.resident[..., None], noisy.to(e.keys.dtype), e.keys))


def cosine(a, b):
    na, nb = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb) if na and nb else 0.0


def loops(keys):
    """[n] redundancy of the entries of one head."""
    n = len(keys)
    rows = [[0.0 if i == j else cosine(keys[i], keys[j]) for j in range(n)] for i in range(n)]
    for row in rows:
        alike = [j for j in range(n) if row[j] > 0.5]
        row[alike[-1] if alike else 0] = 0.0
    return oracle.softmax([sum(row[j] for row in rows) / n for j in range(n)])


def of(keys):
    """The redundancy of keys [n, D] of one head."""
    keys = torch.as_tensor(keys, dtype=torch.float32)
    e = entries(geometry(layers=1, kv_heads=1, groups=1, head_dim=4), (len(keys),), (0,), scattered=False)
    return redundancy(dataclasses.replace(e, keys=keys[None, None, None]), e.resident).flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_redundancy_equals_the_loops(dtype):
    e = case(lengths=(20, 14, 1), prompts=(5, 3, 0), dtype=dtype)
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    got = redundancy(e, candidates)
    assert got.dtype == torch.float32 and got.shape == e.positions.shape
    for at in oracle.every(e):
        n = int(e.resident[at].sum())
        want = torch.tensor(loops(e.keys[at][:n].double().tolist()))
        assert torch.allclose(got[at][:n], want.masked_fill(~candidates[at][:n], 0), atol=1e-6)
        assert not got[at][n:].any()


@pytest.mark.parametrize("elements", [1, 900, 5000])
def test_blocks_change_nothing(elements, monkeypatch):
    e = case()
    want = redundancy(e, e.resident)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    assert torch.allclose(redundancy(e, e.resident), want, atol=1e-7)


def test_every_sequence_is_measured_by_its_own_keys():
    e = case()
    batch = redundancy(e, e.resident)
    for r in range(3):
        alone = redundancy(single(e, r), single(e, r).resident)
        n = alone.shape[-1]
        assert torch.allclose(batch[:, r, :, :n], alone[:, 0], atol=1e-7)


@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
@settings(max_examples=40, deadline=None)
def test_redundancy_ignores_the_lengths_of_keys(seed, n):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, 4, generator=g)
    factors = 2.0 ** torch.randint(-40, 40, (n, 1), generator=g)
    assert torch.allclose(of(keys * factors), of(keys), atol=1e-6)
    assert of(keys).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_degenerate_keys(fill):
    """Zero keys resemble nothing. Of identical ones every row spares the newest, whose own row spares the one before:
    the older are all alike."""
    got = of(torch.full((6, 4), fill))
    if fill == 0:
        assert torch.allclose(got, torch.full((6,), 1 / 6))
    else:
        assert got[5] < got[4] < got[3] and torch.allclose(got[:4], got[0].expand(4))


def test_of_three_copies_the_newer_is_less_redundant():
    got = of([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert got[0] > got[2] > got[4]


def test_a_pair_with_a_third_that_resembles_both_prefers_the_newer():
    got = of([[0, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])
    assert got[2] > got[4]


def test_a_pair_alone_ties():
    """Each spares the other: the published rule is symmetric here."""
    got = of([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])
    assert float(got[1]) == pytest.approx(float(got[3]), abs=1e-7)


def test_nan_in_a_resident_key_shows_in_its_row_alone():
    e = case()
    e.keys[1, 0, 1, 3] = torch.nan
    got = redundancy(e, e.resident)
    assert got[1, 0, 1].isnan().all() and int(got.isnan().sum()) == 20
    with pytest.raises(FloatingPointError, match="NaN"):
        RKV(**SMALL).bind(Host(e.geometry)).compress(e, TARGET)


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("group", ["mean", "max_logits"])
def test_scores_weigh_importance_against_redundancy(lam, group):
    e = case()
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    got = RKVScorer(lam, 3, 5, group=group).score(e, candidates)
    for at in oracle.every(e):
        history = [0 <= p < int(e.length[at[1]]) - 3 for p in e.positions[at].tolist()]
        n = int(e.resident[at].sum())
        mean = oracle.mean(e, *at, 3, history, group == "max_logits")
        importance = oracle.pool(mean, history, 5, "max")
        alike = loops(e.keys[at][:n].double().tolist())
        want = torch.tensor([lam * a - (1 - lam) * b for a, b in zip(importance[:n], alike, strict=True)])
        assert torch.allclose(got[at][:n], want.masked_fill(~candidates[at][:n], 0), atol=1e-5)
        assert not got[at][n:].any()


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["mean", "max_logits"]))
@settings(max_examples=30, deadline=None)
def test_lambda_one_is_snapkv(seed, coarse, group):
    e = case(seed=seed % 10**6)
    if coarse:  # keys drawn from a few make tied scores
        e = dataclasses.replace(e, keys=e.keys.nan_to_num().sign())
    params = {**SMALL, "group": group, "prompt": "compete"}
    mine = RKV.make("r_kv", {**params, "lambda": "1"}).bind(Host(e.geometry)).compress(e, TARGET).keep
    theirs = SnapKV.make("snapkv", params).bind(Host(e.geometry)).compress(e, TARGET).keep
    assert torch.equal(mine, theirs)
    assert torch.equal(
        RKVScorer(1.0, 3, group=group).score(e, e.resident), SnapKVScorer(3, group=group).score(e, e.resident)
    )


def test_redundancy_decides_where_importance_ties():
    """Queries of zero attend evenly, so that the oldest copies leave first."""
    e = entries(geometry(), (15,), (0,), scattered=False, needs=Needs(queries=3))
    keys = torch.zeros(15, 16)
    keys[torch.arange(15), torch.arange(15)] = 1
    keys[[2, 5, 9]] = keys[2].clone()
    e = dataclasses.replace(e, keys=keys.expand_as(e.keys), queries=torch.zeros_like(e.queries))
    method = RKV(prompt="compete", **SMALL)
    for target, gone in ((14, [2]), (13, [2, 5])):
        keep = method.bind(Host(e.geometry)).compress(e, torch.tensor([target])).keep
        assert (keep == torch.tensor([i not in gone for i in range(15)])).all()


def test_a_batch_of_unequal_rows_equals_singles():
    e = case(seed=6)
    policy = RKV(**SMALL).bind(Host(e.geometry))
    batch = policy.compress(e, TARGET).keep
    assert (batch.sum(-1) == TARGET[:, None]).all() and not (batch & ~e.resident).any()
    for r in range(3):
        alone = policy.compress(single(e, r), TARGET[r : r + 1]).keep
        assert torch.equal(alone[:, 0], batch[:, r, :, : alone.shape[-1]])


def test_lambda_lies_between_0_and_1():
    for bad in ("1.5", "-0.1"):
        with pytest.raises(MethodError, match="lambda is .*must be at"):
            RKV.make("r_kv", {"lambda": bad})
    made = RKV.make("r_kv", {"lambda": "0.07"})
    assert made.scorer() == RKVScorer(0.07) and made.scorer().needs == Needs(queries=8)
