"""Facility location against a slow fp64 oracle, exhaustive search, and what its objective implies."""

import itertools
import math

import pytest
import torch
from cask_methods.selectors.facility_location import FacilityLocation, greedy
from cask_methods.selectors.top_k import TopK
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single
from selector_cases import CLOSE, case, cosine, each_row, likeness, picks, rows, tau_of

PATHS = ("exhaustive", "lazy")


def clients_of(s, pool, clients, tau):
    if clients == "uniform" or not tau:
        return dict.fromkeys(pool, 1.0)
    top = max(s[i] for i in pool)
    share = {i: math.exp((s[i] - top) / tau) for i in pool}
    return {i: len(pool) * share[i] / sum(share.values()) for i in pool}


def worth(chosen, s, pool, alike, client, weight, eta):
    """F from its definition."""
    cover = sum(client[i] * max([0.0, *(alike(i, j) for j in chosen)]) for i in pool)
    return weight * cover + eta * sum(s[j] for j in chosen)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("tau", "shared", "clients", "eta"),
    [
        ("std", (), "uniform", 1.0),
        ("1", (0,), "scores", 0.5),
        ("range", (0, 2), "scores", 1.0),
        ("std", (2,), "uniform", 0),
    ],
)
def test_equals_the_fp64_oracle(path, tau, shared, clients, eta):
    e, scores, candidates, quota = case(shared)
    got = FacilityLocation(0.6, eta, tau, "values", clients, path).select(scores, candidates, quota, e)
    covered = {r: [] for r in range(3)}
    for (layer, r, h), s, pool, q, vectors in each_row(e, scores, candidates, quota):
        mine = set(got.keep[layer, r, h].nonzero().flatten().tolist())
        unit = tau_of(s, pool, tau)
        client = clients_of(s, pool, clients, tau_of(s, pool, tau))
        table = {(i, j): likeness(vectors, i, j) for i in pool for j in pool}

        def value(chosen, s=s, pool=pool, table=table, client=client, unit=unit):
            return worth(chosen, s, pool, lambda i, j: table[i, j], client, 0.6 * unit, eta)

        picked = []
        while len(picked) < q:
            values = {i: value([*picked, i]) for i in pool if i not in picked}
            best = max(values.values())
            near = [i for i in values if values[i] > best - 10 * CLOSE]
            picked.append(next((i for i in near if i in mine), near[0]))
        assert mine == set(picked)
        covered[r] += [max([0.0, *(table[i, j] for j in picked)]) for i in pool]
    for r in range(3):
        assert float(got.measures["coverage"][r]) == pytest.approx(sum(covered[r]) / len(covered[r]), abs=1e-5)
    assert bool((got.measures["top_k_overlap"] < 1).any())


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from(["uniform", "scores"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_both_paths_follow_the_greedy_rule_in_order(seed, n, clients, ties):
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 3, (n, 3), generator=g).float() if ties else torch.randn(n, 3, generator=g)
    scores = torch.randint(4, (n,), generator=g) / 2 if ties else torch.randn(n, generator=g)
    weight = float(10 ** (torch.rand(1, generator=g) * 3 - 2))
    quota = int(torch.randint(1, min(n, 16) + 1, (1,), generator=g))
    problem = rows(values, scores, quota, weight)
    s, pool = scores.tolist(), list(range(n))
    client = clients_of(s, pool, clients, float(problem.tau))
    alike = [[max(0.0, cosine(a, b)) for b in values.tolist()] for a in values.tolist()]
    for path in PATHS:
        left, cover = set(pool), [0.0] * n
        for pick in greedy(problem, 1.0, clients, path)[0][0].tolist():
            gains = {
                j: s[j] + float(problem.weight) * sum(client[i] * max(0.0, alike[i][j] - cover[i]) for i in pool)
                for j in left
            }
            assert gains[pick] >= max(gains.values()) - 10 * CLOSE * max(1.0, n * float(problem.weight))
            left.remove(pick)
            cover = [max(c, alike[i][pick]) for i, c in enumerate(cover)]


@pytest.mark.parametrize("path", PATHS)
def test_ties_go_to_the_lowest_position(path):
    values, scores = torch.eye(8).repeat(6, 1), torch.arange(8.0).repeat(6)
    # A first copy covers its six at once; a second adds its score alone.
    got = greedy(rows(values, scores, 12, 5.0), 1.0, "uniform", path)[0][0].tolist()
    assert got == [*range(7, -1, -1), 15, 23, 31, 39]
    assert greedy(rows(torch.ones(40, 4), torch.ones(40), 20, 3.0), 1.0, path=path)[0][0].tolist() == list(range(20))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_reaches_the_bound_of_submodular_maximisation(seed):
    """Against every set of the size, with the scores shifted to be non-negative, which changes no pick."""
    g = torch.Generator().manual_seed(seed)
    n, q = 9, 3
    values, scores = torch.randn(n, 3, generator=g), torch.randn(n, generator=g)
    problem = rows(values, scores, q, 0.5)
    got = greedy(problem, 1.0)[0][0].tolist()
    shifted = scores - scores.min()
    assert greedy(rows(values, shifted, q, 0.5), 1.0)[0][0].tolist() == got
    s, pool, client = shifted.tolist(), range(n), dict.fromkeys(range(n), 1.0)
    alike = [[cosine(a, b) for b in values.tolist()] for a in values.tolist()]

    def value(chosen):
        return worth(chosen, s, pool, lambda i, j: alike[i][j], client, float(problem.weight), 1.0)

    best = max(value(c) for c in itertools.combinations(pool, q))
    assert value(got) >= (1 - 1 / math.e) * best - CLOSE


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
    assert torch.equal(FacilityLocation(0.0).select(scores, mask, quota, e).keep, want)
    stable = [i for _, i in sorted((-float(scores[0, 0, 0, i]), i) for i in range(n) if mask[0, 0, 0, i])][: int(quota)]
    problem = rows(e.values[0, 0, 0], scores[0, 0, 0], int(quota), 0.0, mask[0, 0, 0])
    for path in PATHS:
        assert greedy(problem, 1.0, path=path)[0][0].tolist() == stable


def test_coverage_alone_takes_one_of_each_cluster():
    """With eta 0 the first pick stands for the largest cluster, the next for the second largest."""
    hubs = torch.eye(4)[[0, 1, 1, 2, 2, 2, 3, 3, 3, 3]]
    assert greedy(rows(hubs, torch.arange(10.0), 4, 1.0), 0.0)[0][0].tolist() == [6, 3, 1, 0]


def test_orthogonal_values_give_the_top_k_and_opposites_cover_nothing():
    scores = torch.randn(8, generator=torch.Generator().manual_seed(1))
    want = scores.argsort(descending=True, stable=True).tolist()
    assert greedy(rows(torch.eye(8), scores, 8, 2.0), 1.0)[0][0].tolist() == want
    assert greedy(rows([[1.0, 0], [-1.0, 0], [0, 0.0]], [3.0, 2.0, 2.9], 3, 1.0, tau="1"), 1.0)[0][0].tolist() == [
        0,
        1,
        2,
    ]


def test_important_clients_draw_the_picks():
    """Two clusters of equal size: only scores as clients' weights tell which to cover first."""
    values, scores = torch.eye(2)[[0, 0, 0, 1, 1, 1]], [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]
    assert greedy(rows(values, scores, 2, 1.0), 0.0, "uniform")[0][0].tolist() == [0, 3]
    assert greedy(rows(values, scores, 2, 1.0), 0.0, "scores")[0][0].tolist() == [3, 0]


@pytest.mark.parametrize("path", [*PATHS, "auto"])
@pytest.mark.parametrize("quota", [0, 1, 10])
def test_quota_of_none_one_and_all(path, quota):
    g = torch.Generator().manual_seed(0)
    values, scores = torch.eye(10), torch.randn(10, generator=g)
    want = {0: set(), 1: {int(scores.argmax())}, 10: set(range(10))}[quota]
    assert picks(FacilityLocation(path=path), values, scores, quota) == want


@pytest.mark.parametrize("path", PATHS)
def test_rows_of_unequal_quota_equal_rows_on_their_own(path):
    for shared in ((), (0,)):
        e, scores, candidates, quota = case(shared, lengths=(40, 24, 9))
        quota = torch.tensor([3, 9, 7])[None, :, None].expand(quota.shape)
        selector = FacilityLocation(path=path)
        batch = selector.select(scores, candidates, quota, e)
        assert (batch.keep.sum(-1) == quota).all() and not (batch.keep & ~candidates).any()
        for r in range(3):
            alone = single(e, r)
            n = alone.positions.shape[-1]
            got = selector.select(
                scores[:, r : r + 1, :, :n], candidates[:, r : r + 1, :, :n], quota[:, r : r + 1], alone
            )
            assert torch.equal(got.keep, batch.keep[:, r : r + 1, :, :n])
            for name, value in got.measures.items():
                assert torch.allclose(value, batch.measures[name][r : r + 1], atol=1e-6)


def test_rows_in_blocks_give_the_same_picks(monkeypatch):
    e, scores, mask, quota = case()
    whole = FacilityLocation().select(scores, mask, quota, e).keep
    monkeypatch.setattr("cask_methods.selectors.greedy._BYTES", 5 * 2 * 24 * 24 * 4)
    for path in PATHS:
        assert torch.equal(FacilityLocation(path=path).select(scores, mask, quota, e).keep, whole)


def test_half_precision_scale_and_shift_change_nothing():
    e, scores, candidates, quota = case(dtype=torch.bfloat16)
    scores = (scores * 64).round() / 64
    base = FacilityLocation().select(scores, candidates, quota, e).keep
    assert torch.equal(FacilityLocation().select(scores * 8, candidates, quota, e).keep, base)
    assert torch.equal(FacilityLocation().select(scores + 2, candidates, quota, e).keep, base)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_what_is_not_finite(bad):
    values, scores = torch.randn(5, 4), torch.arange(5.0)
    with pytest.raises(FloatingPointError):
        picks(FacilityLocation(), values.index_fill(0, torch.tensor(2), bad), scores, 2)
    with pytest.raises(FloatingPointError):
        picks(FacilityLocation(), values, scores.index_fill(0, torch.tensor(2), bad), 2)


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("path", PATHS)
def test_degenerate_values_are_the_top_k(fill, path):
    """All values zero cover nothing; all identical are covered by the first pick, whichever it is."""
    scores = torch.randn(30, generator=torch.Generator().manual_seed(4))
    top = set(scores.topk(11).indices.tolist())
    assert picks(FacilityLocation(path=path), torch.full((30, 3), fill), scores, 11) == top


def test_one_spike_is_kept_and_counts_stay():
    g = torch.Generator().manual_seed(2)
    scores, values = torch.randn(50, generator=g), torch.randn(50, 4, generator=g)
    scores[17] = 1e6
    for path in PATHS:
        for clients in ("uniform", "scores"):
            assert len(picks(FacilityLocation(0.5, clients=clients, path=path), values, scores, 20)) == 20
