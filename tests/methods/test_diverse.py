"""α's selector against a slow fp64 oracle and against what its rule implies."""

import dataclasses

import pytest
import torch
from cask_methods.presets.alpha import Alpha
from cask_methods.selectors.diverse import Diverse, greedy
from cask_methods.selectors.greedy import spread, unit_vectors
from cask_methods.selectors.top_k import TopK
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single
from selector_cases import CLOSE, case, clustered, each_row, likeness, picks, row, rows, tau_of

from cask_eval.errors import MethodError

PATHS = ("gram", "incremental", "lazy")


def reduced(penalty, cosines):
    above = [max(0.0, c) for c in cosines]
    if not above:
        return 0.0
    return {"max": max(above), "sum": sum(above), "mean": sum(above) / len(above)}[penalty]


def order(values, scores, quota, lam, path="gram"):
    return greedy(rows(values, scores, quota, lam), path)[0][0].tolist()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("penalty", ["max", "mean", "sum"])
@pytest.mark.parametrize(
    ("tau", "shared", "seeded"), [("std", (), False), ("1", (0,), True), ("range", (0, 2), False), ("std", (2,), True)]
)
def test_equals_the_fp64_oracle(path, penalty, tau, shared, seeded):
    """Pick by pick, and the measures, which the oracle's own order gives."""
    e, scores, candidates, quota = case(shared)
    selector = Diverse(0.7, tau, "values", penalty, seeded, path)
    got = selector.select(scores, candidates, quota, e)
    protected = e.resident & (e.positions < e.prompt_tokens.view(1, -1, 1, 1))
    paid, picked_by_row = {r: [] for r in range(3)}, {r: [0, 0] for r in range(3)}
    for (layer, r, h), s, pool, q, vectors in each_row(e, scores, candidates, quota):
        mine = set(got.keep[layer, r, h].nonzero().flatten().tolist())
        seeds = protected[0, r, 0].nonzero().flatten().tolist() if seeded else []
        unit = tau_of(s, pool, tau)

        def m(i, picked, vectors=vectors, seeds=seeds):
            return reduced(penalty, [likeness(vectors, i, j) for j in [*seeds, *picked]])

        picked = []
        while len(picked) < q:
            burden = {i: m(i, picked) for i in pool if i not in picked}
            gains = {i: s[i] - 0.7 * unit * x for i, x in burden.items()}
            best = max(gains.values())
            near = [i for i in gains if gains[i] > best - CLOSE]
            chosen = next((i for i in near if i in mine), near[0])
            paid[r].append(burden[chosen])
            picked.append(chosen)
        assert mine == set(picked)
        plain = sorted(pool, key=lambda i: (-s[i], i))[:q]
        picked_by_row[r][0] += len(mine & set(plain))
        picked_by_row[r][1] += q
    for r in range(3):
        assert float(got.measures["redundancy"][r]) == pytest.approx(sum(paid[r]) / len(paid[r]), abs=1e-5)
        same, total = picked_by_row[r]
        assert float(got.measures["top_k_overlap"][r]) == pytest.approx(same / total)
    assert same < total or penalty == "mean"


@given(st.integers(0, 2**32 - 1), st.integers(2, 90), st.sampled_from(["max", "mean", "sum"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_all_paths_follow_the_greedy_rule_in_order(seed, n, penalty, ties):
    """Ties in scores and in values, opposite and zero values, any λ; more entries than a lazy block holds."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 3, (n, 3), generator=g).float() if ties else torch.randn(n, 3, generator=g)
    scores = torch.randint(4, (n,), generator=g) / 2 if ties else torch.randn(n, generator=g)
    lam = float(10 ** (torch.rand(1, generator=g) * 4 - 2))
    quota = int(torch.randint(1, min(n, 24) + 1, (1,), generator=g))
    problem = rows(values, scores, quota, lam)
    unit, vectors = float(problem.weight), [values.double().tolist()]

    def gain(i, picked):
        return float(scores[i]) - unit * reduced(penalty, [likeness(vectors, i, j) for j in picked])

    for path in PATHS:
        got = greedy(problem, path, penalty)[0][0].tolist()
        picked = []
        for pick in got:
            gains = {i: gain(i, picked) for i in range(n) if i not in picked}
            assert gains[pick] >= max(gains.values()) - CLOSE * max(1, unit)
            picked.append(pick)


@pytest.mark.parametrize("path", PATHS)
def test_ties_go_to_the_lowest_position_in_every_path(path):
    """Six copies each of eight orthogonal entries: of copies that tie, the first goes first."""
    values, scores = torch.eye(8).repeat(6, 1), torch.arange(8.0).repeat(6)
    assert order(values, scores, 16, 5.0, path) == [*range(7, -1, -1), 15, 23, 31, 39, 47, 14, 22, 30]
    assert order(torch.ones(40, 4), torch.ones(40), 20, 3.0, path) == list(range(20))
    assert order(torch.zeros(40, 4), torch.ones(40), 20, 3.0, path) == list(range(20))


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
    want = TopK().select(scores, mask, quota, e).keep
    assert torch.equal(Diverse(0.0).select(scores, mask, quota, e).keep, want)
    stable = [i for _, i in sorted((-float(scores[0, 0, 0, i]), i) for i in range(n) if mask[0, 0, 0, i])][: int(quota)]
    assert set(stable) == set(want[0, 0, 0].nonzero().flatten().tolist())
    problem = rows(e.values[0, 0, 0], scores[0, 0, 0], int(quota), 0.0, mask[0, 0, 0])
    for path in PATHS:
        for penalty in ("max", "mean", "sum"):
            assert greedy(problem, path, penalty)[0][0].tolist() == stable


def test_constant_scores_keep_the_lowest_positions_at_any_lambda():
    """No spread, no penalty: τ = 0."""
    assert picks(Diverse(1.0), torch.ones(6, 4), torch.full((6,), 0.3), 3) == {0, 1, 2}


def test_a_duplicate_is_displaced_once_the_penalty_exceeds_its_lead():
    values = [[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    scores = [1.0, 0.9, 0.5, -2.0]
    tau = float(torch.tensor(scores).std(correction=0))
    lead = 0.9 - 0.5
    assert picks(Diverse(0.99 * lead / tau), values, scores, 2) == {0, 1}
    assert picks(Diverse(1.01 * lead / tau), values, scores, 2) == {0, 2}


@pytest.mark.parametrize("path", PATHS)
def test_huge_lambda_is_farthest_first_after_the_first_pick(path):
    g = torch.Generator().manual_seed(3)
    values, scores = torch.rand(40, 4, generator=g), torch.randn(40, generator=g)
    unit = torch.nn.functional.normalize(values, dim=-1).double()
    picked = [int(scores.argmax())]
    while len(picked) < 6:
        near = (unit @ unit[picked].T).amax(-1)
        near[picked] = torch.inf
        picked.append(int(near.argmin()))
    assert order(values, scores, 6, 1e6, path) == picked


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


def test_protected_entries_seed_the_set_only_when_asked():
    """The best candidate repeats a protected value, the other two repeat each other."""
    values = [[1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0]]
    candidates = torch.tensor([False, True, True, True])
    e, scores, mask = row(values, [9.0, 3.0, 2.0, 1.9], candidates)
    one, two = torch.tensor([[[1]]]), torch.tensor([[[2]]])
    for seeded, first, both in ((False, [1], [1, 2]), (True, [2], [1, 2])):
        selector = Diverse(5.0, "1", seed_protected=seeded)
        assert selector.select(scores, mask, one, e).keep[0, 0, 0].nonzero().flatten().tolist() == first
        assert selector.select(scores, mask, two, e).keep[0, 0, 0].nonzero().flatten().tolist() == both
    got = Diverse(5.0, "1", seed_protected=True).select(scores, mask, one, e).measures
    assert float(got["redundancy"]) == 0 and float(got["top_k_overlap"]) == 0


def test_the_penalties_differ_as_named():
    """Three entries resemble the first two picks by 0.6 each, or one of them by 0.8, or not at all."""
    values = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0.6, 0.6, 0.53, 0], [0.8, 0, 0, 0.6], [0, 0, 0, 1.0]]
    scores = [9.0, 8.0, 1.01, 1.0, -1.0]
    got = {p: greedy(rows(values, scores, 3, 1.0, tau="1"), "gram", p)[0][0].tolist() for p in ("max", "mean", "sum")}
    assert got == {"max": [0, 1, 2], "mean": [0, 1, 3], "sum": [0, 1, 3]}
    # m of the third: max 0.6; mean 0.4 against 0.6; sum 0.8 against 1.2.
    for p, want in (("max", 0.6), ("mean", 0.4), ("sum", 0.8)):
        m = greedy(rows(values, scores, 3, 1.0, tau="1"), "lazy", p)[1][0]
        assert m[:2].tolist() == [0, 0] and float(m[2]) == pytest.approx(want, abs=2e-3)


@given(st.integers(0, 2**32 - 1), st.integers(-8, 8), st.integers(-4, 4))
@settings(max_examples=30, deadline=None)
def test_invariant_to_the_scores_scale_and_shift(seed, power, shift):
    """By a power of two and by a shift that fp32 represents, on scores with room for it."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(16, 6, generator=g)
    scores = torch.randint(-512, 512, (16,), generator=g) / 64
    base = picks(Diverse(), values, scores, 7)
    assert picks(Diverse(), values, scores * 2.0**power, 7) == base
    assert picks(Diverse(), values, scores + shift, 7) == base


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_length_of_a_value_is_irrelevant(seed):
    g = torch.Generator().manual_seed(seed)
    values, scores = torch.randn(16, 6, generator=g), torch.randn(16, generator=g)
    factors = 2.0 ** torch.randint(-40, 40, (16, 1), generator=g)
    assert picks(Diverse(0.8), values * factors, scores, 7) == picks(Diverse(0.8), values, scores, 7)


@pytest.mark.parametrize("path", [*PATHS, "auto"])
@pytest.mark.parametrize("quota", [0, 1, 10])
def test_quota_of_none_one_and_all(path, quota):
    g = torch.Generator().manual_seed(0)
    values, scores = torch.randn(10, 4, generator=g), torch.randn(10, generator=g)
    want = {0: set(), 1: {int(scores.argmax())}, 10: set(range(10))}[quota]
    assert picks(Diverse(path=path), values, scores, quota) == want


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("seeded", [False, True])
def test_rows_of_unequal_quota_equal_rows_on_their_own(path, seeded):
    for shared in ((), (0,)):
        e, scores, candidates, quota = case(shared, lengths=(40, 24, 9))
        quota = torch.tensor([3, 9, 7])[None, :, None].expand(quota.shape)
        selector = Diverse(path=path, seed_protected=seeded)
        batch = selector.select(scores, candidates, quota, e)
        assert bool(torch.isfinite(batch.measures["redundancy"]).all())
        for r in range(3):
            alone = single(e, r)
            n = alone.positions.shape[-1]
            got = selector.select(
                scores[:, r : r + 1, :, :n], candidates[:, r : r + 1, :, :n], quota[:, r : r + 1], alone
            )
            assert torch.equal(got.keep, batch.keep[:, r : r + 1, :, :n])
            assert not batch.keep[:, r, :, n:].any()
            for name, value in got.measures.items():
                assert torch.allclose(value, batch.measures[name][r : r + 1], atol=1e-6)


def test_rows_in_blocks_give_the_same_picks(monkeypatch):
    e, scores, mask, quota = case()
    whole = Diverse(path="gram").select(scores, mask, quota, e)
    for count in (0, 1, 5):
        monkeypatch.setattr("cask_methods.selectors.greedy._BYTES", count * 24 * 24 * 4)
        for path in ("gram", "auto"):
            assert torch.equal(Diverse(path=path).select(scores, mask, quota, e).keep, whole.keep)


def test_the_automatic_path_changes_with_the_size(monkeypatch):
    used = []
    for name in ("_one_by_one", "_lazy"):
        original = getattr(__import__("cask_methods.selectors.diverse", fromlist=["x"]), name)

        def spy(problem, penalty, gram, name=name, original=original):
            used.append((name, gram))
            return original(problem, penalty, gram)

        monkeypatch.setattr(f"cask_methods.selectors.diverse.{name}", spy)
    g = torch.Generator().manual_seed(0)
    for n, quota in ((64, 8), (400, 8), (600, 100)):
        greedy(rows(torch.randn(n, 4, generator=g), torch.randn(n, generator=g), quota, 0.5))
    assert used == [("_one_by_one", True), ("_lazy", False), ("_lazy", False)]


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
        s: Diverse(2.0, "std", s).select(scores, mask, two, e).keep[0, 0, 0].tolist()
        for s in ("values", "values_centred", "keys")
    }
    assert got["values_centred"] == got["keys"] == [True, True, False, False]


def test_seeds_are_centred_by_the_candidates_mean():
    values = torch.tensor([[7.0, 1.0], [5.0, 1.0], [5.0, -1.0]])
    mask = torch.tensor([False, True, True])[None, None, None]
    unit = unit_vectors(values[None, None, None], mask, seeds=~mask, centred=True)[0, 0, 0]
    assert unit.tolist() == [pytest.approx([2 / 5**0.5, 1 / 5**0.5]), [0, 1], [0, -1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype):
    e, scores, candidates, quota = case(dtype=dtype)
    wide = dataclasses.replace(e, values=e.values.float(), keys=e.keys.float())
    for space in ("values", "values_centred", "keys"):
        got, want = (Diverse(space=space).select(scores, candidates, quota, x).keep for x in (e, wide))
        assert torch.equal(got, want)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_what_is_not_finite(bad, path):
    values, scores = torch.randn(5, 4), torch.arange(5.0)
    with pytest.raises(FloatingPointError):
        picks(Diverse(path=path), values.index_fill(0, torch.tensor(2), bad), scores, 2)
    with pytest.raises(FloatingPointError):
        picks(Diverse(path=path), values, scores.index_fill(0, torch.tensor(2), bad), 2)


def test_what_stands_in_protected_entries_matters_only_as_a_seed():
    e, scores, candidates, quota = case()
    others = e.resident & ~candidates
    poisoned = dataclasses.replace(e, values=e.values.masked_fill(others.unsqueeze(-1), torch.nan))
    assert torch.equal(
        Diverse().select(scores, candidates, quota, poisoned).keep, Diverse().select(scores, candidates, quota, e).keep
    )
    with pytest.raises(FloatingPointError):
        Diverse(seed_protected=True).select(scores, candidates, quota, poisoned)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_degenerate_values_still_give_exact_counts(fill):
    """All values zero is the top-k; all identical too, for the penalty then falls on all alike."""
    scores = torch.randn(9, generator=torch.Generator().manual_seed(4))
    top = set(scores.topk(4).indices.tolist())
    assert picks(Diverse(0.7), torch.full((9, 3), fill), scores, 4) == top


def test_one_spike_in_the_scores_is_picked_and_counts_stay():
    """A spike makes τ large: the penalty then outweighs every other difference."""
    g = torch.Generator().manual_seed(2)
    scores, values = torch.randn(50, generator=g), torch.randn(50, 4, generator=g)
    scores[17] = 1e6
    for path in PATHS:
        kept = picks(Diverse(0.5, path=path), values, scores, 20)
        assert len(kept) == 20 and 17 in kept


def test_measures_of_a_row_without_picks():
    e, scores, candidates, quota = case()
    got = Diverse().select(scores, candidates, torch.zeros_like(quota), e)
    assert not got.keep.any()
    assert got.measures["redundancy"].tolist() == [0, 0, 0] and got.measures["top_k_overlap"].tolist() == [1, 1, 1]


def test_spread_is_that_of_the_candidates():
    scores = torch.tensor([1.0, 3.0, 100.0])
    mask = torch.tensor([True, True, False])
    assert [float(spread(scores, mask, t)) for t in ("std", "1", "range")] == [1.0, 1.0, 2.0]
    assert [float(spread(scores, ~mask & mask, t)) for t in ("std", "1", "range")] == [0.0, 1.0, 0.0]


def test_the_preset_passes_its_parameters_on():
    made = Alpha.make("alpha", {"lambda": "0.25", "tau": "range", "penalty": "sum", "seed_protected": True})
    assert made.selector() == Diverse(0.25, "range", "values", "sum", True)
    assert Alpha().selector() == Diverse()
    with pytest.raises(MethodError, match="use one of max, mean, sum"):
        Alpha.make("alpha", {"penalty": "median"})


def test_clustered_values_change_the_choice():
    e, scores, candidates, quota = case()
    got = Diverse(1.0).select(scores, candidates, quota, clustered(e, hubs=2, noise=0.01))
    assert bool((got.measures["top_k_overlap"] < 1).any()) and bool((got.measures["redundancy"] > 0).all())
