"""The determinantal selector against determinants computed slowly, and what its objective implies."""

import itertools
import math

import pytest
import torch
from cask_methods.selectors.dpp import DPP, RIDGE, greedy
from cask_methods.selectors.top_k import TopK
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single
from selector_cases import case, cosine, each_row, likeness, picks, rows, tau_of

CLOSE = 1e-7


def log_det(matrix):
    """log of the determinant of a positive definite matrix, by elimination."""
    m, total = [list(r) for r in matrix], 0.0
    for k in range(len(m)):
        assert m[k][k] > 0
        total += math.log(m[k][k])
        for i in range(k + 1, len(m)):
            f = m[i][k] / m[k][k]
            m[i] = [x - f * y for x, y in zip(m[i], m[k], strict=True)]
    return total


def kernel(alike, chosen):
    return [[1 + RIDGE if i == j else (1 + alike(i, j)) / 2 for j in chosen] for i in chosen]


def worth(chosen, s, alike, theta, weight):
    """The objective from its definition."""
    return theta * sum(s[i] for i in chosen) + weight * log_det(kernel(alike, chosen))


@pytest.mark.parametrize(
    ("tau", "shared", "theta"), [("std", (), 1.0), ("1", (0,), 0.5), ("range", (0, 2), 1.0), ("std", (2,), 0.0)]
)
def test_equals_the_fp64_oracle(tau, shared, theta):
    e, scores, candidates, quota = case(shared)
    got = DPP(0.6, theta, tau).select(scores, candidates, quota, e)
    volume = {r: [0.0, 0] for r in range(3)}
    for (layer, r, h), s, pool, q, vectors in each_row(e, scores, candidates, quota):
        mine = set(got.keep[layer, r, h].nonzero().flatten().tolist())
        unit = tau_of(s, pool, tau)
        table = {(i, j): likeness(vectors, i, j) for i in pool for j in pool}

        def value(chosen, s=s, table=table, unit=unit):
            return worth(chosen, s, lambda i, j: table[i, j], theta, 0.6 * unit)

        picked = []
        while len(picked) < q:
            values = {i: value([*picked, i]) for i in pool if i not in picked}
            best = max(values.values())
            near = [i for i in values if values[i] > best - 1e-5]
            picked.append(next((i for i in near if i in mine), near[0]))
        assert mine == set(picked)
        volume[r][0] += log_det(kernel(lambda i, j, table=table: table[i, j], picked))
        volume[r][1] += q
    for r in range(3):
        assert float(got.measures["log_volume"][r]) == pytest.approx(volume[r][0] / volume[r][1], abs=1e-5)
    assert bool((got.measures["top_k_overlap"] < 1).any())


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_follows_the_greedy_rule_in_order(seed, n, ties, theta):
    """Few dimensions, so that the ridge is all that is left of most entries; duplicates, opposites and zeros."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 3, (n, 3), generator=g).float() if ties else torch.randn(n, 3, generator=g)
    scores = torch.randint(4, (n,), generator=g) / 2 if ties else torch.randn(n, generator=g)
    weight = float(10 ** (torch.rand(1, generator=g) * 3 - 2))
    quota = int(torch.randint(1, min(n, 9) + 1, (1,), generator=g))
    problem = rows(values, scores, quota, weight, dtype=torch.float64)
    s, v = scores.tolist(), values.tolist()
    alike = [[cosine(a, b) for b in v] for a in v]
    order, volume = (x[0].tolist() for x in greedy(problem, theta))
    picked, before = [], 0.0
    for pick, log in zip(order, volume, strict=True):
        gains = {
            i: theta * s[i] + float(problem.weight) * (log_det(kernel(lambda a, b: alike[a][b], [*picked, i])) - before)
            for i in range(n)
            if i not in picked
        }
        assert gains[pick] >= max(gains.values()) - CLOSE * max(1.0, float(problem.weight))
        picked.append(pick)
        now = log_det(kernel(lambda a, b: alike[a][b], picked))
        assert log == pytest.approx(now - before, abs=1e-6)
        before = now


def test_is_the_kernel_with_quality_inside():
    """Weight 1: log det of e^{θs_i/2τ} K_ij e^{θs_j/2τ} for every set, up to the factor τ."""
    g = torch.Generator().manual_seed(6)
    values, s = torch.randn(6, 3, generator=g).tolist(), torch.randn(6, generator=g).tolist()
    tau = tau_of(s, range(6), "std")
    for chosen in itertools.combinations(range(6), 3):
        inner = kernel(lambda i, j: cosine(values[i], values[j]), chosen)
        outer = [
            [math.exp((s[i] + s[j]) / (2 * tau)) * x for j, x in zip(chosen, line, strict=True)]
            for i, line in zip(chosen, inner, strict=True)
        ]
        want = worth(chosen, s, lambda i, j: cosine(values[i], values[j]), 1.0, tau)
        assert tau * log_det(outer) == pytest.approx(want, abs=1e-9)


def test_ties_go_to_the_lowest_position():
    values, scores = torch.eye(8).repeat(6, 1), torch.arange(8.0).repeat(6)
    got = greedy(rows(values, scores, 8, 5.0, dtype=torch.float64), 1.0)[0][0].tolist()
    assert got == [*range(7, -1, -1)]
    alike = rows(torch.ones(40, 4), torch.ones(40), 20, 3.0, tau="1", dtype=torch.float64)
    assert greedy(alike, 1.0)[0][0].tolist()[:3] == [0, 1, 2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_null_setting_is_the_stable_top_k(seed, n):
    """Weight 0 bit for bit, with many ties; and the loop itself at weight 0 gives the same order."""
    g = torch.Generator().manual_seed(seed)
    e = entries(geometry(layers=1, kv_heads=1, head_dim=4), lengths=(n,), prompts=(0,), seed=seed)
    scores = torch.randint(3, (1, 1, 1, n), generator=g).float() * 0.1
    mask = torch.rand(1, 1, 1, n, generator=g) < 0.8
    quota = torch.randint(int(mask.sum()) + 1, (1, 1, 1), generator=g)
    want = TopK().select(scores, mask, quota, e).keep
    assert torch.equal(DPP(0.0).select(scores, mask, quota, e).keep, want)
    stable = [i for _, i in sorted((-float(scores[0, 0, 0, i]), i) for i in range(n) if mask[0, 0, 0, i])][: int(quota)]
    problem = rows(e.values[0, 0, 0], scores[0, 0, 0], int(quota), 0.0, mask[0, 0, 0], dtype=torch.float64)
    assert greedy(problem, 1.0)[0][0].tolist() == stable


def test_volume_alone_takes_opposites_before_duplicates():
    values = [[1.0, 0], [1.0, 0], [0, 1.0], [-1.0, 0]]
    assert picks(DPP(1.0, 0.0), values, [3.0, 2.0, 1.0, 0.0], 2) == {0, 3}
    assert picks(DPP(1.0, 0.0), values, [3.0, 2.0, 1.0, 0.0], 3) == {0, 2, 3}


@pytest.mark.parametrize("quota", [0, 1, 10])
def test_quota_of_none_one_and_all(quota):
    g = torch.Generator().manual_seed(0)
    values, scores = torch.randn(10, 4, generator=g), torch.randn(10, generator=g)
    want = {0: set(), 1: {int(scores.argmax())}, 10: set(range(10))}[quota]
    assert picks(DPP(), values, scores, quota) == want


def test_rows_of_unequal_quota_equal_rows_on_their_own():
    for shared in ((), (0,)):
        e, scores, candidates, quota = case(shared, lengths=(40, 24, 9))
        quota = torch.tensor([3, 9, 7])[None, :, None].expand(quota.shape)
        batch = DPP().select(scores, candidates, quota, e)
        assert (batch.keep.sum(-1) == quota).all() and not (batch.keep & ~candidates).any()
        for r in range(3):
            alone = single(e, r)
            n = alone.positions.shape[-1]
            got = DPP().select(scores[:, r : r + 1, :, :n], candidates[:, r : r + 1, :, :n], quota[:, r : r + 1], alone)
            assert torch.equal(got.keep, batch.keep[:, r : r + 1, :, :n])
            for name, value in got.measures.items():
                assert torch.allclose(value, batch.measures[name][r : r + 1], atol=1e-6)


def test_with_and_without_gram_matrices_in_blocks(monkeypatch):
    e, scores, mask, quota = case()
    whole = DPP().select(scores, mask, quota, e).keep
    monkeypatch.setattr("cask_methods.selectors.greedy._BYTES", 30_000)
    assert torch.equal(DPP().select(scores, mask, quota, e).keep, whole)
    monkeypatch.setattr("cask_methods.selectors.greedy._GRAM_ENTRIES_PER_PICK", 0)
    assert torch.equal(DPP().select(scores, mask, quota, e).keep, whole)


def test_half_precision_scale_and_shift_change_nothing():
    e, scores, candidates, quota = case(dtype=torch.bfloat16)
    scores = (scores * 64).round() / 64
    base = DPP().select(scores, candidates, quota, e).keep
    assert torch.equal(DPP().select(scores * 8, candidates, quota, e).keep, base)
    assert torch.equal(DPP().select(scores + 2, candidates, quota, e).keep, base)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_what_is_not_finite(bad):
    values, scores = torch.randn(5, 4), torch.arange(5.0)
    with pytest.raises(FloatingPointError):
        picks(DPP(), values.index_fill(0, torch.tensor(2), bad), scores, 2)
    with pytest.raises(FloatingPointError):
        picks(DPP(), values, scores.index_fill(0, torch.tensor(2), bad), 2)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_degenerate_values_are_the_top_k(fill):
    """Zero values resemble nothing, and cost alike; of identical ones each next costs alike too."""
    scores = torch.randn(30, generator=torch.Generator().manual_seed(4))
    top = set(scores.topk(11).indices.tolist())
    assert picks(DPP(), torch.full((30, 3), fill), scores, 11) == top


def test_one_spike_is_kept_and_counts_stay():
    g = torch.Generator().manual_seed(2)
    scores, values = torch.randn(50, generator=g), torch.randn(50, 4, generator=g)
    scores[17] = 1e6
    kept = picks(DPP(), values, scores, 20)
    assert len(kept) == 20 and 17 in kept
