"""SnapKV while decoding: every option against plain loops, and what a window keeps."""

import dataclasses
import itertools

import attention_oracle as oracle
import pytest
import torch
from cask_methods.attention import GROUPS, POOLINGS, mean_attention
from cask_methods.presets.snapkv import SnapKV
from cask_methods.scorers.snapkv import DOMAINS, SnapKVScorer
from method_cases import entries, geometry, single

from cask_eval.engine.contract import Host, Needs
from cask_eval.errors import MethodError

TARGET = torch.tensor([14, 10, 6])
SMALL = {"window": 3, "recent": 3}


def case(seed=0, queries=3, **kw):
    return entries(geometry(), seed=seed, needs=Needs(queries=queries), **kw)


def past(e, at, window):
    start = int(e.length[at[1]]) - window
    return [0 <= p < start for p in e.positions[at].tolist()]


@pytest.mark.parametrize(("domain", "pooling", "group"), list(itertools.product(DOMAINS, POOLINGS, GROUPS)))
def test_every_option_equals_the_loops(domain, pooling, group):
    e = case(lengths=(20, 14, 2), prompts=(5, 3, 1))
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    got = SnapKVScorer(3, 5, pooling, domain, group).score(e, candidates)
    assert got.shape == e.positions.shape and got.dtype == torch.float32
    for at in oracle.every(e):
        history = past(e, at, 3)
        mean = oracle.mean(e, *at, 3, history if domain == "history" else None, group == "max_logits")
        want = torch.tensor(oracle.pool(mean, history, 5, pooling))
        assert torch.allclose(got[at], want.masked_fill(~candidates[at], 0), atol=1e-5)


def test_half_precision_is_computed_in_fp32():
    e = case(dtype=torch.bfloat16)
    wide = dataclasses.replace(e, keys=e.keys.float(), queries=e.queries.float())
    assert torch.equal(SnapKVScorer(3).score(e, e.resident), SnapKVScorer(3).score(wide, e.resident))


def test_the_domain_of_the_softmax():
    """Over the history, probabilities sum to 1; over the row the window takes its part, and for one row of logits
    the two are proportional."""
    e = case()
    for window in (1, 3):
        history, row = (SnapKVScorer(window, 1, "max", d, "max_logits").score(e, e.resident) for d in DOMAINS)
        assert torch.allclose(history.sum(-1), torch.ones(()))
        assert (row.sum(-1) < 0.9999).all()
        alike = torch.isclose(row / row.sum(-1, keepdim=True), history, atol=1e-5)
        assert alike.all() == (window == 1)


def test_no_pooling_is_the_mean_of_the_rows():
    e = case()
    scores = SnapKVScorer(3, 1, domain="row").score(e, e.resident)
    start = (e.length - 3).view(1, -1, 1, 1)
    assert torch.equal(scores, mean_attention(e, 3).masked_fill(e.positions >= start, 0))


def test_only_the_window_of_more_remembered_queries_counts():
    e = case(queries=8)
    fewer = dataclasses.replace(e, queries=e.queries[:, :, :, -3:], query_positions=e.query_positions[:, -3:])
    assert torch.equal(SnapKVScorer(3).score(e, e.resident), SnapKVScorer(3).score(fewer, e.resident))


def test_pooling_keeps_the_neighbours_of_a_spike():
    e = entries(geometry(), (40,), (0,), scattered=False, needs=Needs(queries=8))
    e.keys.zero_()
    spike = e.queries[:, :, ::2, -8:].sum(3)
    e.keys[:, :, :, 20] = 100 * spike / spike.norm(dim=-1, keepdim=True)
    e = dataclasses.replace(e, queries=spike.repeat_interleave(2, 2).unsqueeze(3).expand_as(e.queries))
    keep = SnapKV(prompt="compete").bind(Host(e.geometry)).compress(e, torch.tensor([15])).keep
    want = torch.tensor([17 <= i <= 23 or i >= 32 for i in range(40)])
    assert (keep == want).all()


@pytest.mark.parametrize("prompt", ["pinned", "compete"])
def test_the_window_and_the_best_of_the_history_stay(prompt):
    e = case(seed=2, scattered=False)
    method = SnapKV(prompt=prompt, **SMALL)
    keep = method.bind(Host(e.geometry)).compress(e, TARGET).keep
    assert (keep.sum(-1) == TARGET[:, None]).all()
    scores = method.scorer().score(e, e.resident)
    for at in oracle.every(e):
        count, first = int(e.length[at[1]]), int(e.prompt_tokens[at[1]]) if prompt == "pinned" else 0
        kept = [i for i in range(count) if i < first or i >= count - 3]
        pool = sorted(range(first, count - 3), key=lambda i: (-float(scores[at][i]), i))
        want = sorted(kept + pool[: int(TARGET[at[1]]) - len(kept)])
        assert keep[at].nonzero().flatten().tolist() == want


def test_a_batch_of_unequal_rows_equals_singles():
    e = case(seed=6)
    for group in GROUPS:
        policy = SnapKV(group=group, **SMALL).bind(Host(e.geometry))
        batch = policy.compress(e, TARGET).keep
        for r in range(3):
            alone = policy.compress(single(e, r), TARGET[r : r + 1]).keep
            assert torch.equal(alone[:, 0], batch[:, r, :, : alone.shape[-1]])


def test_a_repeated_head_decides_like_the_group():
    """Query heads of a KV head as KV heads of their own, with equal queries: the same decision."""
    e = case()
    alike = e.queries[:, :, ::2].repeat_interleave(2, 2)
    e = dataclasses.replace(e, queries=alike)
    wide = dataclasses.replace(
        e,
        geometry=geometry(kv_heads=4, groups=1),
        keys=e.keys.repeat_interleave(2, 2),
        positions=e.positions.repeat_interleave(2, 2),
    )
    for group in GROUPS:
        scorer = SnapKVScorer(3, group=group)
        got, want = scorer.score(wide, wide.resident), scorer.score(e, e.resident)
        assert torch.allclose(got, want.repeat_interleave(2, 2), atol=1e-6)


def test_identical_keys_keep_the_lower_positions():
    e = case(scattered=False)
    e = dataclasses.replace(e, keys=torch.ones_like(e.keys))
    keep = SnapKV(prompt="compete", kernel=1, **SMALL).bind(Host(e.geometry)).compress(e, TARGET).keep
    index = torch.arange(20)
    for r, count in enumerate((20, 14, 7)):
        want = (index < TARGET[r] - 3) | ((index >= count - 3) & (index < count))
        assert (keep[:, r] == want).all()


def test_parameters_that_contradict_are_refused():
    with pytest.raises(MethodError, match="kernel is 4; it must be odd"):
        SnapKV.make("snapkv", {"kernel": 4})
    with pytest.raises(MethodError, match="recent is 8; it must be at least the window, 16"):
        SnapKV.make("snapkv", {"window": 16})
    made = SnapKV.make("snapkv", {"window": 16, "recent": 16, "kernel": 5, "pooling": "avg"})
    assert made.scorer() == SnapKVScorer(16, 5, "avg", "history", "mean")
    made = SnapKV.make("snapkv", {"domain": "row", "group": "max_logits"})
    assert made.scorer() == SnapKVScorer(8, 7, "max", "row", "max_logits")


def test_the_remembered_queries_are_charged():
    geo = geometry()
    assert SnapKV().footprint(geo).fixed_bytes == 8 * geo.layers * geo.query_heads * geo.head_dim * 4
    assert SnapKV().protected_count(30) == 38
