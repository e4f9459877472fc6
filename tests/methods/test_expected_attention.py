"""Expected Attention against an oracle that rotates by matrices and builds the covariance."""

import cmath
import dataclasses
import math

import pytest
import torch
from cask_methods.presets.expected_attention import ExpectedAttention
from cask_methods.rotary import rotate, unrotate
from cask_methods.scorers.expected_attention import ExpectedAttentionScorer
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single

from cask_eval.engine.contract import Needs
from cask_eval.errors import MethodError


def case(geo, window=6, **kw):
    return entries(geo, needs=Needs(queries=window), **kw)


def average_rotation(geo, start, horizon):
    """R̄ [D, D], position by position."""
    half, dim = geo.head_dim // 2, geo.head_dim
    out = torch.zeros(dim, dim, dtype=torch.float64)
    for position in range(start, start + horizon):
        for f, omega in enumerate(geo.inv_freq.tolist()):
            c = geo.scaling * math.cos(omega * position) / horizon
            s = geo.scaling * math.sin(omega * position) / horizon
            out[f, f] += c
            out[f + half, f + half] += c
            out[f, f + half] -= s
            out[f + half, f] += s
    return out


def unrotated(q, position, geo):
    half = geo.head_dim // 2
    out = torch.zeros(geo.head_dim, dtype=torch.float64)
    for f, omega in enumerate(geo.inv_freq.tolist()):
        z = complex(float(q[f]), float(q[f + half])) * cmath.exp(-1j * omega * position) / geo.scaling
        out[f], out[f + half] = z.real, z.imag
    return out


def oracle(e, candidates, horizon, epsilon):
    geo = e.geometry
    out = torch.zeros(e.positions.shape, dtype=torch.float64)
    for layer in range(geo.layers):
        for r in range(len(e.length)):
            rotation = average_rotation(geo, int(e.length[r]), horizon)
            for h in range(geo.kv_heads):
                live = candidates[layer, r, h].nonzero().flatten().tolist()
                shares = []
                for q in range(h * geo.groups, (h + 1) * geo.groups):
                    raw = [
                        unrotated(e.queries[layer, r, q, w], int(p), geo)
                        for w, p in enumerate(e.query_positions[r])
                        if p >= 0
                    ]
                    mu = sum(raw) / len(raw)
                    sigma = sum(torch.outer(x - mu, x - mu) for x in raw) / len(raw)
                    mu, sigma = rotation @ mu, rotation @ sigma @ rotation.T
                    z = []
                    for i in live:
                        k = e.keys[layer, r, h, i].double()
                        z.append(float(mu @ k) / math.sqrt(geo.head_dim) + float(k @ sigma @ k) / (2 * geo.head_dim))
                    top = max(z, default=0)
                    total = sum(math.exp(x - top) for x in z)
                    shares.append([math.exp(x - top) / total for x in z])
                for j, i in enumerate(live):
                    share = sum(x[j] for x in shares) / geo.groups
                    length = math.sqrt(sum(float(x) ** 2 for x in e.values[layer, r, h, i]))
                    out[layer, r, h, i] = (share + epsilon) * length
    return out


@pytest.mark.parametrize("scaling", [1.0, 1.2689])
@pytest.mark.parametrize(("horizon", "epsilon"), [(1, 0.0), (9, 0.01)])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 2e-6), (torch.bfloat16, 2e-6)])
def test_equals_the_matrix_oracle(dtype, atol, horizon, epsilon, scaling):
    geo = geometry(layers=2, head_dim=8, scaling=scaling)
    # The third sequence has seen 12 tokens, fewer than the window.
    e = case(geo, window=15, lengths=(9, 5, 4), prompts=(3, 0, 2), dtype=dtype)
    assert bool((e.query_positions[2] < 0).any()) and bool((e.query_positions[2] >= 0).any())
    queries = e.queries.masked_fill((e.query_positions < 0).view(1, 3, 1, -1, 1), torch.nan)
    e = dataclasses.replace(e, queries=queries)
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    got = ExpectedAttentionScorer(15, horizon, epsilon).score(e, candidates)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert (got - oracle(e, candidates, horizon, epsilon)).abs().max() <= atol


def test_one_kind_of_query_at_horizon_one_is_plain_attention():
    """Σ = 0: every remembered query is the same vector before rotation."""
    geo = geometry(layers=1, kv_heads=1, groups=2, head_dim=8, scaling=1.3)
    e = case(geo, lengths=(9,), prompts=(0,), dtype=torch.float64)
    raw = torch.randn(geo.query_heads, 1, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    queries = rotate(raw.expand(-1, 6, -1), e.query_positions, geo)
    e = dataclasses.replace(e, queries=queries[None, None], values=torch.ones_like(e.values) / 8**0.5)
    next_query = rotate(raw, e.length, geo)
    want = torch.softmax(next_query @ e.keys[0, 0, 0].T / 8**0.5, -1).mean((0, 1))
    got = ExpectedAttentionScorer(6, 1).score(e, e.resident)
    assert torch.allclose(got[0, 0, 0], want, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 100_000))
@settings(max_examples=25, deadline=None)
def test_the_origin_of_time_is_irrelevant(seed, shift):
    """Keys, queries and the step shifted alike."""
    geo = geometry(layers=2, head_dim=8, scaling=1.2)
    e = case(geo, seed=seed, dtype=torch.float64, junk=False)
    keys = rotate(unrotate(e.keys, e.positions, geo), e.positions + shift, geo)
    at = e.query_positions[:, None]
    queries = rotate(unrotate(e.queries, at, geo), at + shift, geo)
    later = dataclasses.replace(
        e,
        keys=keys,
        queries=queries,
        positions=torch.where(e.resident, e.positions + shift, -1),
        query_positions=torch.where(e.query_positions >= 0, e.query_positions + shift, -1),
        length=e.length + shift,
    )
    scorer = ExpectedAttentionScorer(6, 32)
    assert torch.allclose(scorer.score(e, e.resident), scorer.score(later, e.resident), atol=1e-7)


def test_padding_and_protected_entries_have_no_influence():
    geo = geometry()
    e = case(geo)
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    scorer = ExpectedAttentionScorer(6, 32, 0.01)
    batch = scorer.score(e, candidates)
    assert torch.isfinite(batch).all() and (batch[~candidates] == 0).all() and (batch >= 0).all()
    outside = ~candidates.unsqueeze(-1)
    poisoned = dataclasses.replace(
        e, keys=e.keys.masked_fill(outside, 1e3), values=e.values.masked_fill(outside, torch.nan)
    )
    assert torch.equal(scorer.score(poisoned, candidates), batch)
    for r in range(3):
        alone = single(e, r)
        n = alone.positions.shape[-1]
        got = scorer.score(alone, candidates[:, r : r + 1, :, :n])
        assert torch.allclose(batch[:, r : r + 1, :, :n], got, atol=1e-6)


def test_only_the_newest_of_the_remembered_queries_count():
    e = case(geometry(), window=9)
    fewer = dataclasses.replace(e, queries=e.queries[..., 3:, :], query_positions=e.query_positions[:, 3:])
    scorer = ExpectedAttentionScorer(6, 32)
    assert torch.equal(scorer.score(e, e.resident), scorer.score(fewer, e.resident))
    for short in (fewer, dataclasses.replace(e, queries=None, query_positions=None)):
        with pytest.raises(MethodError, match="newest 7 queries"):
            ExpectedAttentionScorer(7).score(short, e.resident)


def test_layers_in_chunks_give_the_same_scores(monkeypatch):
    e = case(geometry())
    scorer = ExpectedAttentionScorer(6, 32)
    whole = scorer.score(e, e.resident)
    monkeypatch.setattr("cask_methods.scorers.expected_attention._CHUNK_ELEMENTS", 1)
    assert torch.equal(scorer.score(e, e.resident), whole)


def test_identical_keys_leave_the_values_to_decide():
    e = case(geometry(), lengths=(9,), prompts=(0,))
    e = dataclasses.replace(e, keys=e.keys[:, :, :, :1].expand_as(e.keys))
    got = ExpectedAttentionScorer(6).score(e, e.resident)
    assert torch.allclose(got, e.values.norm(dim=-1) / 9, rtol=1e-5)


def test_zero_values_are_worth_nothing_and_a_spike_takes_all():
    e = case(geometry(layers=1, kv_heads=1), lengths=(9,), prompts=(0,))
    e.values[..., 4, :] = 0
    e.keys[..., 2, :] *= 1e4
    got = ExpectedAttentionScorer(6).score(e, e.resident)[0, 0, 0]
    assert got[4] == 0 and torch.isfinite(got).all()
    assert got[2] == pytest.approx(float(e.values[0, 0, 0, 2].norm()), rel=1e-5)
    assert ExpectedAttentionScorer(6, epsilon=0.5).score(e, e.resident)[0, 0, 0, 3] > 0


def test_relabelling_kv_heads_relabels_scores():
    e = case(geometry(kv_heads=2, groups=2))
    heads = torch.tensor([2, 3, 0, 1])
    swapped = dataclasses.replace(
        e, keys=e.keys.flip(2), values=e.values.flip(2), positions=e.positions.flip(2), queries=e.queries[:, :, heads]
    )
    scorer = ExpectedAttentionScorer(6, 32)
    assert torch.equal(scorer.score(e, e.resident).flip(2), scorer.score(swapped, e.resident))


def test_preset_builds_its_scorer_and_charges_its_queries():
    made = ExpectedAttention.make("expected_attention", {"window": 8, "horizon": 16, "epsilon": "0.01"})
    assert made.scorer() == ExpectedAttentionScorer(8, 16, 0.01)
    assert made.sink == 4 and ExpectedAttention().scorer() == ExpectedAttentionScorer(256, 512, 0.0)
    geo = geometry()
    assert made.footprint(geo).fixed_bytes == 8 * geo.layers * geo.query_heads * geo.head_dim * 4
