import cmath
import dataclasses
import math

import pytest
import torch
from cask_methods.presets.triattention import TriAttention
from cask_methods.scorers.triattention import OFFSETS, TriAttentionScorer
from cask_methods.selectors.top_k import TopK
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single, statistics

from cask_eval.engine.contract import Host
from cask_eval.engine.method import Policy
from cask_eval.errors import MethodError

MODES = ("per_layer_head", "per_head", "global")


def rotate(x, position, inv_freq, scaling):
    """Half-pairing RoPE of one vector, entry by entry."""
    half = len(x) // 2
    out = [0.0] * len(x)
    for f in range(half):
        z = complex(x[f], x[f + half]) * cmath.exp(1j * inv_freq[f] * position) * scaling
        out[f], out[f + half] = z.real, z.imag
    return out


def oracle(e, stats, mode, normalise, aggregation, group, candidates, trig=True, mlr=True):
    """The published procedure, slowly: un-rotate each key at its true position, loop over the distances, z-score by
    hand, reduce over query heads and layers. Everything in fp64. mode None: scores of every query head."""
    geo = e.geometry
    inv, s, groups = geo.inv_freq.tolist(), geo.scaling, geo.groups
    half, n = geo.head_dim // 2, e.positions.shape[-1]
    out = torch.zeros(geo.layers, len(e.length), geo.kv_heads, n, dtype=torch.float64)
    apart = torch.zeros(geo.layers, len(e.length), geo.kv_heads, groups, n, dtype=torch.float64)
    for layer in range(geo.layers):
        for r in range(len(e.length)):
            for h in range(geo.kv_heads):
                live = candidates[layer, r, h].nonzero().flatten().tolist()
                per_head = []
                for q in range(h * groups, (h + 1) * groups):
                    scores = []
                    for i in live:
                        p = int(e.positions[layer, r, h, i])
                        key = e.keys[layer, r, h, i].double().tolist()
                        raw = [complex(key[f], key[f + half]) / s * cmath.exp(-1j * inv[f] * p) for f in range(half)]
                        at = []
                        for offset in OFFSETS:
                            distance = int(e.length[r]) - p + offset
                            total = 0.0
                            for f in range(half):
                                c = complex(float(stats.c_re[layer, q, f]), float(stats.c_im[layer, q, f]))
                                rho = c * raw[f].conjugate()
                                if trig:
                                    total += s * s * abs(rho) * math.cos(inv[f] * distance + cmath.phase(rho))
                                weight = float(stats.m[layer, q, f]) - (abs(c) if mlr else 0)
                                total += s * s * weight * abs(raw[f])
                            at.append(total)
                        scores.append(max(at) if aggregation == "max" else sum(at) / len(at))
                    if normalise and scores:
                        mean = sum(scores) / len(scores)
                        sigma = max(math.sqrt(sum((x - mean) ** 2 for x in scores) / len(scores)), 1e-6)
                        scores = [(x - mean) / sigma for x in scores]
                    per_head.append(scores)
                for j, i in enumerate(live):
                    group_scores = [x[j] for x in per_head]
                    apart[layer, r, h, :, i] = torch.tensor(group_scores, dtype=torch.float64)
                    out[layer, r, h, i] = max(group_scores) if group == "max" else sum(group_scores) / groups
    if mode is None:
        return apart
    if mode == "global":
        return out.amax((0, 2), keepdim=True)
    return out.mean(0, keepdim=True) if mode == "per_head" else out


def competing(e):
    return (e.positions >= 0) & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))


@pytest.mark.parametrize("scaling", [1.0, 1.2689])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("normalise", "aggregation", "group"),
    [(True, "mean", "max"), (True, "max", "max"), (False, "mean", "mean"), (False, "max", "mean")],
)
def test_equals_the_unrotate_and_loop_oracle(mode, normalise, aggregation, group, scaling):
    geo = geometry(layers=2, head_dim=8, scaling=scaling)
    e = entries(geo, lengths=(9, 5), prompts=(3, 0), dtype=torch.float64)
    stats = statistics(geo, dtype=torch.float64)
    candidates = competing(e)
    got = TriAttentionScorer(mode, normalise, aggregation, group, statistics=stats).score(e, candidates)
    want = oracle(e, stats, mode, normalise, aggregation, group, candidates)
    assert got.dtype == torch.float64 and got.shape == want.shape
    assert (got - want).abs().max() <= 1e-9


@pytest.mark.parametrize(("trig", "mlr"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_ablations_equal_the_oracle(aggregation, trig, mlr):
    geo = geometry(layers=2, head_dim=8, scaling=1.2689)
    e = entries(geo, lengths=(9, 5), prompts=(3, 0), dtype=torch.float64)
    stats = statistics(geo, dtype=torch.float64)
    made = TriAttention(aggregation=aggregation, disable_trig=not trig, disable_mlr=not mlr, normalise=False).scorer()
    got = dataclasses.replace(made, statistics=stats).score(e, competing(e))
    want = oracle(e, stats, "per_layer_head", False, aggregation, "max", competing(e), trig, mlr)
    assert (got - want).abs().max() <= 1e-9


@pytest.mark.parametrize("normalise", [True, False])
def test_heads_are_the_scores_before_any_reduction(normalise):
    geo = geometry(layers=2, head_dim=8, scaling=1.2689)
    e = entries(geo, lengths=(9, 5), prompts=(3, 0), dtype=torch.float64)
    stats = statistics(geo, dtype=torch.float64)
    scorer = TriAttentionScorer(normalise=normalise, statistics=stats)
    got = scorer.heads(e, competing(e))
    assert got.shape == (2, 2, geo.kv_heads, geo.groups, 9)
    assert (got - oracle(e, stats, None, normalise, "mean", "max", competing(e))).abs().max() <= 1e-9
    for mode in MODES:
        assert torch.equal(dataclasses.replace(scorer, mode=mode).heads(e, competing(e)), got)


@given(st.integers(0, 2**32 - 1), st.integers(1, 14))
@settings(max_examples=40, deadline=None)
def test_global_keeps_what_the_published_union_keeps(seed, quota):
    """Brute force: every query head proposes its own K best, the union is ranked by the maximum over heads. Few
    distinct keys make many ties, which go to the lower position at each step."""
    geo = geometry(layers=2, kv_heads=2, groups=2, head_dim=4)
    e = entries(geo, lengths=(18,), prompts=(3,), seed=seed)
    e = dataclasses.replace(e, keys=e.keys.sign())
    candidates = competing(e)
    scorer = TriAttentionScorer("global", statistics=statistics(geo, seed=seed % 7))
    heads = scorer.heads(e, candidates)[:, 0].flatten(0, 2)
    live = candidates[0, 0, 0].nonzero().flatten().tolist()
    union = set()
    for head in heads.tolist():
        union |= set(sorted(live, key=lambda i: (-head[i], i))[:quota])
    best = heads.amax(0).tolist()
    want = set(sorted(union, key=lambda i: (-best[i], i))[:quota])
    shared = candidates[:1, :, :1]
    kept = TopK().select(scorer.score(e, candidates), shared, torch.tensor([[[quota]]]), e).keep
    assert kept.shape == (1, 1, 1, 18) and set(kept[0, 0, 0].nonzero().flatten().tolist()) == want


def test_score_is_the_expected_rotated_attention_logit():
    """With a single constant query (m = |c|) the score at one distance is the plain dot product of rotated vectors."""
    geo = geometry(layers=1, kv_heads=1, groups=1, head_dim=8)
    e = entries(geo, lengths=(6,), prompts=(0,), dtype=torch.float64)
    stats = statistics(geo, dtype=torch.float64)
    stats = dataclasses.replace(stats, m=torch.hypot(stats.c_re, stats.c_im))
    got = TriAttentionScorer(normalise=False, statistics=stats).score(e, e.positions >= 0)[0, 0, 0]
    query = torch.cat([stats.c_re[0, 0], stats.c_im[0, 0]]).tolist()
    want = torch.zeros(6, dtype=torch.float64)
    for offset in OFFSETS:
        rotated = rotate(query, int(e.length[0]) + offset, geo.inv_freq.tolist(), 1.0)
        want += e.keys[0, 0, 0] @ torch.tensor(rotated, dtype=torch.float64) / len(OFFSETS)
    assert (got - want).abs().max() < 1e-9


def test_long_contexts_keep_their_phase_in_fp32():
    geo = geometry(layers=1, head_dim=8)
    e = entries(geo, lengths=(12,), prompts=(0,), dtype=torch.float64)
    e = dataclasses.replace(e, length=torch.tensor([200_000]))
    exact = TriAttentionScorer(statistics=statistics(geo, dtype=torch.float64)).score(e, e.positions >= 0)
    single_precision = TriAttentionScorer(statistics=statistics(geo)).score(e, e.positions >= 0)
    assert single_precision.dtype == torch.float32
    assert (exact - single_precision).abs().max() < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_padding_and_protected_entries_have_no_influence(mode):
    geo = geometry()
    e = entries(geo)
    scorer = TriAttentionScorer(mode, statistics=statistics(geo))
    candidates = competing(e)
    batch = scorer.score(e, candidates)
    assert torch.isfinite(batch).all()
    poisoned = dataclasses.replace(e, keys=e.keys.masked_fill(~candidates.unsqueeze(-1), 1e3))
    assert torch.equal(scorer.score(poisoned, candidates), batch)
    for r in range(3):
        alone = single(e, r)
        n = alone.positions.shape[-1]
        got = scorer.score(alone, candidates[:, r : r + 1, :, :n])
        assert torch.allclose(batch[:, r : r + 1, :, :n], got, atol=1e-5)


def test_layers_in_chunks_give_the_same_scores(monkeypatch):
    geo = geometry()
    e = entries(geo)
    scorers = [TriAttentionScorer(mode, statistics=statistics(geo)) for mode in MODES]
    whole = [scorer.score(e, e.resident) for scorer in scorers]
    monkeypatch.setattr("cask_methods.scorers.triattention._CHUNK_ELEMENTS", 1)
    assert all(torch.equal(scorer.score(e, e.resident), w) for scorer, w in zip(scorers, whole, strict=True))


def test_constant_scores_standardise_to_zero():
    geo = geometry(layers=1)
    e = entries(geo, lengths=(8,), prompts=(0,))
    e = dataclasses.replace(e, keys=torch.zeros_like(e.keys))
    assert (TriAttentionScorer(statistics=statistics(geo)).score(e, e.positions >= 0) == 0).all()


def test_needs_statistics():
    e = entries(geometry())
    with pytest.raises(MethodError, match="calibration"):
        TriAttentionScorer().score(e, e.positions >= 0)
    with pytest.raises(MethodError, match="calibration"):
        TriAttentionScorer().bind(Host(e.geometry))


def test_binding_reads_and_checks_statistics(tmp_path):
    geo = geometry()
    statistics(geo).save(tmp_path / "s.safetensors")
    e = entries(geo)
    bound = TriAttentionScorer("global", disable_mlr=True).bind(Host(geo, str(tmp_path / "s.safetensors")))
    want = TriAttentionScorer("global", disable_mlr=True, statistics=statistics(geo))
    assert torch.equal(bound.score(e, e.resident), want.score(e, e.resident))
    with pytest.raises(MethodError, match="do not fit"):
        TriAttentionScorer().bind(Host(geometry(layers=4), str(tmp_path / "s.safetensors")))


def test_relabelling_kv_heads_relabels_scores():
    geo = geometry(kv_heads=2, groups=2)
    e, stats = entries(geo), statistics(geo)
    swapped = dataclasses.replace(e, keys=e.keys.flip(2), positions=e.positions.flip(2))
    heads = torch.tensor([2, 3, 0, 1])
    moved = dataclasses.replace(stats, c_re=stats.c_re[:, heads], c_im=stats.c_im[:, heads], m=stats.m[:, heads])
    a = TriAttentionScorer(statistics=stats).score(e, e.positions >= 0)
    b = TriAttentionScorer(statistics=moved).score(swapped, e.positions >= 0)
    assert torch.equal(a.flip(2), b)


def policy(method, geo):
    parts = (dataclasses.replace(method.scorer(), statistics=statistics(geo)), *method.parts()[1:])
    return Policy(method, Host(geo), *parts)


@pytest.mark.parametrize("mode", MODES)
def test_preset_decides_jointly_as_its_mode_says(mode):
    geo = geometry()
    e = entries(geo)
    target = torch.tensor([12, 9, 6])
    keep = policy(TriAttention(mode=mode), geo).compress(e, target).keep
    assert (keep.sum(-1) == target[None, :, None]).all() and not (keep & ~e.resident).any()
    over_layers, over_heads = bool((keep == keep[:1]).all()), bool((keep == keep[:, :, :1]).all())
    assert (over_layers, over_heads) == (mode != "per_layer_head", mode == "global")


@pytest.mark.parametrize("mode", MODES)
def test_overflow_first_keeps_the_first_entries_of_a_prompt_that_fills_the_budget(mode):
    """As published: nothing generated survives, at the first event and at later ones."""
    geo = geometry()
    made = TriAttention.make("triattention", {"overflow": "first", "mode": mode})
    # The first sequence still holds its prompt of 10, the second only what an earlier event left of 30; the third
    # prompt fits.
    e = entries(geo, lengths=(14, 12, 9), prompts=(10, 12, 2), scattered=False)
    e = dataclasses.replace(e, prompt_tokens=torch.tensor([10, 30, 2]))
    target = torch.tensor([8, 8, 6])
    protected = made.protected(e, target)
    assert protected[0, :, 0].sum(-1).tolist() == [8, 8, 2]
    keep = policy(made, geo).compress(e, target).keep
    assert (keep[:, :2, :, :8]).all() and not keep[:, :2, :, 8:].any()
    assert (keep[:, 2].sum(-1) == 6).all() and keep[:, 2, :, :2].all()
    with pytest.raises(MethodError, match="cannot keep its target"):
        policy(TriAttention(mode=mode), geo).compress(e, target)


def test_overflow_and_the_check_before_a_run():
    with pytest.raises(MethodError, match="protected"):
        TriAttention().check(122, 64)
    TriAttention(overflow="first").check(122, 64)
    for params in ({"prompt": "compete"}, {"prompt": "outside"}, {"recent": 1}):
        with pytest.raises(MethodError, match="pins the prompt and keeps no newest"):
            TriAttention.make("triattention", {"overflow": "first", **params})


@pytest.mark.parametrize("trigger", ["slack", "periodic", "every_step"])
def test_count_prompt_and_overflow_reach_the_schedule(trigger):
    made = TriAttention(trigger=trigger, delta=16, count_prompt=False, overflow="first").schedule(64)
    assert (made.budget, made.count_prompt, made.overflow, made.prompt) == (64, False, "first", "pinned")
    plain = TriAttention(trigger=trigger, delta=16).schedule(64)
    assert (plain.count_prompt, plain.overflow) == (True, "refuse")
    # Without the prompt of 20, the event comes 20 entries later.
    assert made.next_event(20, 20, 20, 20) >= plain.next_event(20, 20, 20, 20) + 16
