"""H2O: its sums against a replay in plain loops, and how it shares the budget."""

import math

import pytest
import torch
from attention_oracle import softmax
from cask_methods.presets.h2o import H2O
from cask_methods.scorers.h2o import TRAIT, H2OScorer
from cask_methods.scorers.tova import TOVAScorer
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single

from cask_eval.engine.contract import Entries, Host
from cask_eval.errors import MethodError

PROMPTS, STEPS, BUDGET, DELTA = (6, 4), 20, 8, 4


def test_sums_and_decisions_equal_a_brute_force_replay():
    """Two sequences of unequal prompts, read in pieces and then decoded with several events each."""
    geo = geometry(layers=2, head_dim=4)
    policy = H2O(prompt="compete").bind(Host(geo))
    g = torch.Generator().manual_seed(11)
    total, layers, heads = max(PROMPTS) + STEPS, geo.layers, geo.kv_heads
    keys = torch.randn(layers, 2, heads, total, 4, generator=g)
    queries = 2 * torch.randn(layers, 2, heads, geo.groups, total, 4, generator=g)
    positions = torch.full((layers, 2, heads, BUDGET + DELTA), -1)
    sums = torch.zeros(positions.shape)
    resident = {(i, r, h): [] for i in range(layers) for r in range(2) for h in range(heads)}
    # What brute force knows: per head, the sum of every position that was ever resident.
    known = {at: {} for at in resident}

    def held(i):
        return keys[i].gather(2, positions[i].clamp_min(0)[..., None].expand(-1, -1, -1, 4))

    def read(at, rows):
        """The queries at positions `at` [2, q] of both sequences, of which only `rows` go on to be observed."""
        at = torch.where(torch.tensor([[r in rows] for r in range(2)]), at, -1)
        for i in range(layers):
            q = queries[i].gather(3, at.clamp_min(0)[:, None, None, :, None].expand(-1, heads, geo.groups, -1, 4))
            logits = q @ held(i)[:, :, None].transpose(-1, -2) / 2
            seen = (positions[i] >= 0)[:, :, None, None] & (
                positions[i][:, :, None, None] <= at[:, None, None, :, None]
            )
            attention = logits.masked_fill(~seen, -torch.inf).softmax(-1)
            assert attention.isnan().any() == (at < 0).any()
            policy.scorer.observe(i, attention, {TRAIT: sums[i]}, at)
        for (i, r, h), there in resident.items():
            for t in at[r].tolist():
                near = [p for p in there if p <= t]
                for head in range(geo.groups if t >= 0 else 0):
                    q = queries[i, r, h, head, t].double().tolist()
                    dot = [sum(a * b for a, b in zip(q, keys[i, r, h, p].double().tolist(), strict=True)) for p in near]
                    for p, share in zip(near, softmax([d / math.sqrt(4) for d in dot]), strict=True):
                        known[i, r, h][p] = known[i, r, h].get(p, 0) + share

    def append(r, t):
        for (i, row, h), there in resident.items():
            if row == r:
                positions[i, r, h, len(there)] = t
                there.append(t)

    for r, count in enumerate(PROMPTS):
        for t in range(count):
            append(r, t)
    ids = torch.arange(max(PROMPTS)).expand(2, -1)
    ids = torch.where(ids < torch.tensor(PROMPTS)[:, None], ids, -1)
    for part in (slice(0, 2), slice(2, 6)):
        read(ids[:, part], rows=(0, 1))

    fired = 0
    for step in range(STEPS):
        at = torch.tensor(PROMPTS)[:, None] + step
        running = [0, 1] if step < STEPS - 3 else [1]
        for r in running:
            append(r, int(at[r]))
        read(at, running)
        for r in running:
            if len(resident[0, r, 0]) < BUDGET + DELTA:
                continue
            fired += 1
            row = slice(r, r + 1)
            wide = torch.stack([held(i)[row] for i in range(layers)])
            one = torch.tensor([1])
            e = Entries(
                wide,
                wide,
                positions[:, row],
                one * PROMPTS[r],
                at[row, 0] + 1,
                one,
                one,
                geo,
                traits={TRAIT: sums[:, row]},
            )
            keep = policy.compress(e, torch.tensor([BUDGET])).keep
            for (i, owner, h), there in resident.items():
                if owner == r:
                    heavy = sorted(there[: -BUDGET // 2], key=lambda p: (-known[i, r, h][p], p))[: BUDGET // 2]
                    want = sorted(heavy) + there[-BUDGET // 2 :]
                    chosen = keep[i, 0, h]
                    assert positions[i, r, h][chosen].tolist() == want
                    moved = sums[i, r, h][chosen]
                    positions[i, r, h], sums[i, r, h] = -1, 0
                    positions[i, r, h, :BUDGET], sums[i, r, h, :BUDGET] = torch.tensor(want), moved
                    there[:] = want
    assert fired >= 6
    for at, there in resident.items():
        assert torch.allclose(sums[at][: len(there)], torch.tensor([known[at][p] for p in there]), atol=1e-5)


def test_one_read_differs_from_tova_only_by_the_reduction_over_heads():
    e = entries(geometry(), junk=False, needs=TOVAScorer.needs | H2OScorer.needs)
    scorer, fresh = H2OScorer(), {TRAIT: torch.zeros_like(e.traits[TRAIT])}
    for i in range(e.geometry.layers):
        q = e.queries[i].view(3, 2, 2, 1, 16)
        logits = q @ e.keys[i].unsqueeze(2).transpose(-1, -2) / 4
        attention = logits.masked_fill(~e.resident[i, :, :, None, None], -torch.inf).softmax(-1)
        scorer.observe(i, attention, {TRAIT: fresh[TRAIT][i]}, e.query_positions)
    e.traits[TRAIT].copy_(fresh[TRAIT])
    mine, theirs = scorer.score(e, e.resident), TOVAScorer().score(e, e.resident)
    assert torch.allclose(mine.sum(2, keepdim=True) / e.geometry.query_heads, theirs, atol=1e-6)
    assert not torch.allclose(mine[:, :, 0], mine[:, :, 1], atol=1e-2)


def test_the_score_is_the_sum_of_the_candidates():
    e = entries(geometry(), needs=H2OScorer.needs)
    candidates = e.resident & (e.positions > 4)
    got = H2OScorer().score(e, candidates)
    assert torch.equal(got[candidates], e.traits[TRAIT][candidates]) and not got[~candidates].any()


def test_equal_sums_keep_the_lower_position():
    e = entries(geometry(), (12,), (0,), scattered=False, needs=H2OScorer.needs)
    e.traits[TRAIT].fill_(0.5)
    keep = H2O().bind(Host(e.geometry)).compress(e, torch.tensor([6])).keep
    assert (keep == torch.tensor([i < 3 or i >= 9 for i in range(12)])).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_budget_is_shared_as_said(data):
    """In a cache without gaps: prompt and sink, then the share's newest, and exactly the target in all."""
    count, prompt = data.draw(st.integers(12, 24)), data.draw(st.integers(0, 6))
    method = H2O(
        prompt=data.draw(st.sampled_from(["pinned", "outside", "compete"])),
        sink=data.draw(st.integers(0, 4)),
        recent_share=data.draw(st.sampled_from([0.0, 0.25, 0.29, 0.5, 1.0])),
    )
    budget = data.draw(st.integers(method.protected_count(prompt), 12))
    target = min(count, budget + prompt * (method.prompt == "outside"))
    e = entries(geometry(layers=2, head_dim=4), (count,), (prompt,), scattered=False, needs=H2OScorer.needs)
    got = method.protected(e, torch.tensor([target]))
    first = max(method.sink, prompt * (method.prompt != "compete"))
    recent = int((target - first) * method.recent_share + 1e-9)
    want = [p < first or p >= count - recent for p in range(count)]
    assert got[1, 0, 1].tolist() == want and (got == got[:1, :, :1]).all()
    keep = method.bind(Host(e.geometry)).compress(e, torch.tensor([target])).keep
    assert (keep.sum(-1) == target).all() and not (got & ~keep).any()


def test_shares_are_not_lost_to_rounding():
    e = entries(geometry(), (120,), (0,), scattered=False)
    assert int(H2O(recent_share=0.29, prompt="compete").protected(e, torch.tensor([100]))[0, 0, 0].sum()) == 29


def test_a_batch_of_unequal_rows_equals_singles():
    e = entries(geometry(), seed=3, needs=H2OScorer.needs)
    policy, target = H2O().bind(Host(e.geometry)), torch.tensor([12, 9, 5])
    batch = policy.compress(e, target).keep
    assert not (batch & ~e.resident).any()
    for r in range(3):
        alone = policy.compress(single(e, r), target[r : r + 1]).keep
        assert torch.equal(alone[:, 0], batch[:, r, :, : alone.shape[-1]])


def test_half_precision_attention_is_summed_in_fp32():
    sums = torch.full((1, 1, 2), 2048.0)
    H2OScorer().observe(0, torch.full((1, 1, 2, 1, 2), 0.5), {TRAIT: sums}, torch.tensor([[3]]))
    assert sums.tolist() == [[[2049.0, 2049.0]]]


@pytest.mark.parametrize("share", ["1.5", "-0.1"])
def test_shares_outside_0_to_1_are_refused(share):
    with pytest.raises(MethodError, match="recent_share is .*must be at"):
        H2O.make("h2o", {"recent_share": share})


def test_a_prompt_that_fills_the_budget_is_refused():
    H2O().check(63, 64)
    with pytest.raises(MethodError, match="64 are protected"):
        H2O().check(64, 64)
    H2O(prompt="compete").check(500, 64)


def test_the_sums_are_charged():
    geo = geometry()
    assert H2O().footprint(geo).trait_bytes == 4 and H2O().footprint(geo).fixed_bytes == 0
