import cmath
import dataclasses
import math

import pytest
import torch
from cask_methods.scorers.triattention import OFFSETS, TriAttentionScorer
from method_cases import entries, geometry, single, statistics

from cask_eval.errors import MethodError


def rotate(x, position, inv_freq, scaling):
    """Half-pairing RoPE of one vector, entry by entry."""
    half = len(x) // 2
    out = [0.0] * len(x)
    for f in range(half):
        z = complex(x[f], x[f + half]) * cmath.exp(1j * inv_freq[f] * position) * scaling
        out[f], out[f + half] = z.real, z.imag
    return out


def oracle(e, stats, mode, normalise, aggregation, group, candidates):
    """The published procedure, slowly: un-rotate each key at its true position, loop over the distances, z-score by
    hand, reduce over query heads and layers. Everything in fp64."""
    geo = e.geometry
    inv, s, groups = geo.inv_freq.tolist(), geo.scaling, geo.groups
    half, n = geo.head_dim // 2, e.positions.shape[-1]
    out = torch.zeros(geo.layers, len(e.length), geo.kv_heads, n, dtype=torch.float64)
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
                                total += s * s * abs(rho) * math.cos(inv[f] * distance + cmath.phase(rho))
                                total += s * s * (float(stats.m[layer, q, f]) - abs(c)) * abs(raw[f])
                            at.append(total)
                        scores.append(max(at) if aggregation == "max" else sum(at) / len(at))
                    if normalise and scores:
                        mean = sum(scores) / len(scores)
                        sigma = max(math.sqrt(sum((x - mean) ** 2 for x in scores) / len(scores)), 1e-6)
                        scores = [(x - mean) / sigma for x in scores]
                    per_head.append(scores)
                for j, i in enumerate(live):
                    group_scores = [x[j] for x in per_head]
                    out[layer, r, h, i] = max(group_scores) if group == "max" else sum(group_scores) / groups
    return out.mean(0, keepdim=True) if mode == "per_head" else out


@pytest.mark.parametrize("scaling", [1.0, 1.2689])
@pytest.mark.parametrize("mode", ["per_layer_head", "per_head"])
@pytest.mark.parametrize(
    ("normalise", "aggregation", "group"),
    [(True, "mean", "max"), (True, "max", "max"), (False, "mean", "mean"), (False, "max", "mean")],
)
def test_equals_the_unrotate_and_loop_oracle(mode, normalise, aggregation, group, scaling):
    geo = geometry(layers=2, head_dim=8, scaling=scaling)
    e = entries(geo, lengths=(9, 5), prompts=(3, 0), dtype=torch.float64)
    stats = statistics(geo, dtype=torch.float64)
    candidates = (e.positions >= 0) & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    got = TriAttentionScorer(mode, normalise, aggregation, group, stats).score(e, candidates)
    want = oracle(e, stats, mode, normalise, aggregation, group, candidates)
    assert got.dtype == torch.float64 and got.shape == want.shape
    assert (got - want).abs().max() <= 1e-9


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


@pytest.mark.parametrize("mode", ["per_layer_head", "per_head"])
def test_padding_and_protected_entries_have_no_influence(mode):
    geo = geometry()
    e = entries(geo)
    scorer = TriAttentionScorer(mode, statistics=statistics(geo))
    candidates = (e.positions >= 0) & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
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
    scorer = TriAttentionScorer("per_head", statistics=statistics(geo))
    whole = scorer.score(e, e.positions >= 0)
    monkeypatch.setattr("cask_methods.scorers.triattention._CHUNK_ELEMENTS", 1)
    assert torch.equal(scorer.score(e, e.positions >= 0), whole)


def test_constant_scores_standardise_to_zero():
    geo = geometry(layers=1)
    e = entries(geo, lengths=(8,), prompts=(0,))
    e = dataclasses.replace(e, keys=torch.zeros_like(e.keys))
    assert (TriAttentionScorer(statistics=statistics(geo)).score(e, e.positions >= 0) == 0).all()


def test_needs_statistics():
    e = entries(geometry())
    with pytest.raises(MethodError, match="calibration"):
        TriAttentionScorer().score(e, e.positions >= 0)


def test_relabelling_kv_heads_relabels_scores():
    geo = geometry(kv_heads=2, groups=2)
    e, stats = entries(geo), statistics(geo)
    swapped = dataclasses.replace(e, keys=e.keys.flip(2), positions=e.positions.flip(2))
    heads = torch.tensor([2, 3, 0, 1])
    moved = dataclasses.replace(stats, c_re=stats.c_re[:, heads], c_im=stats.c_im[:, heads], m=stats.m[:, heads])
    a = TriAttentionScorer(statistics=stats).score(e, e.positions >= 0)
    b = TriAttentionScorer(statistics=moved).score(swapped, e.positions >= 0)
    assert torch.equal(a.flip(2), b)
