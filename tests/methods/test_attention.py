"""Attention of remembered queries against plain loops, against a model's own attention, and its limits."""

import dataclasses

import attention_oracle as oracle
import pytest
import torch
from cask_methods import attention
from cask_methods.attention import history, mean_attention, pool, probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from cask_eval.engine.contract import Needs
from cask_eval.errors import MethodError


def case(lengths=(20, 14, 1), prompts=(5, 3, 1), queries=5, dtype=torch.float32, seed=0, **geo):
    """Entries with remembered queries, NaN where there are fewer: the last sequence has 3 tokens."""
    e = entries(geometry(**geo), lengths, prompts, seed, dtype, needs=Needs(queries=queries))
    absent = (e.query_positions < 0)[None, :, None, :, None]
    return dataclasses.replace(e, queries=e.queries.masked_fill(absent, torch.nan))


@pytest.mark.parametrize("max_logits", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_window_rows_equal_the_loops(max_logits, whole, dtype):
    e = case(dtype=dtype, layers=2)
    among = None if whole else history(e, 4)
    got = probabilities(e, 4, among, max_logits=max_logits)
    averaged = mean_attention(e, 4, among, "max_logits" if max_logits else "mean")
    assert got.dtype == averaged.dtype == torch.float32
    for at in oracle.every(e):
        subset = None if whole else among[at]
        want = torch.tensor(oracle.rows(e, *at, 4, subset, max_logits))
        assert torch.allclose(got[at], want, atol=1e-5)
        assert torch.allclose(averaged[at], torch.tensor(oracle.mean(e, *at, 4, subset, max_logits)), atol=1e-5)
    # One query of the shortest sequence does not exist; the others have something to see.
    assert not got[:, 2, :, :, 0].any()
    sees = 1 if whole else 0
    assert torch.allclose(got[:, 2, :, :, -1].sum(-1), torch.tensor(float(sees)))


def test_a_models_own_attention():
    """With a rotary attention_scaling other than 1, which rotated queries and keys carry already."""
    torch.manual_seed(5)
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_parameters=rope,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    projected = {}
    for i, block in enumerate(model.model.layers):
        for part in (block.self_attn.q_proj, block.self_attn.k_proj):
            part.weight.mul_(10)
            part.register_forward_hook(
                lambda module, _, out, i=i: projected.setdefault(i, []).append(out.view(1, 12, -1, 8).transpose(1, 2))
            )
    out = model(torch.randint(50, (1, 12)), output_attentions=True)
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(12)[None])
    rotated = [apply_rotary_pos_emb(q, k, cos, sin) for q, k in projected.values()]
    assert model.model.rotary_emb.attention_scaling != 1

    e = entries(geometry(layers=2, head_dim=8), (12,), (4,), scattered=False, needs=Needs(queries=5))
    e = dataclasses.replace(
        e, queries=torch.stack([q for q, _ in rotated])[:, :, :, -5:], keys=torch.stack([k for _, k in rotated])
    )
    want = torch.stack(out.attentions)[:, :, :, -5:].view(2, 1, 2, 2, 5, 12)
    assert want.max() > 0.5
    assert torch.allclose(probabilities(e, 5), want, atol=1e-5)


def test_newer_entries_are_invisible():
    e = case(lengths=(20,), prompts=(5,), queries=8)
    got = probabilities(e, 8)
    hidden = e.positions[:, :, :, None, None] > e.query_positions[None, :, None, None, :, None]
    assert hidden.any() and not got[hidden.expand_as(got)].any()
    assert torch.allclose(got.sum(-1), torch.ones(()))


def test_history_is_what_is_older_than_the_window():
    e = entries(geometry(), (6, 3), (0, 0), scattered=False)
    assert history(e, 4)[1, :, 1].tolist() == [[True, True] + [False] * 4, [False] * 6]


def test_a_batch_of_unequal_rows_equals_singles():
    e = case()
    for group in attention.GROUPS:
        batch = mean_attention(e, 5, group=group)
        assert torch.isfinite(batch).all()
        for r in range(3):
            alone = mean_attention(single(e, r), 5, group=group)
            n = alone.shape[-1]
            assert torch.allclose(batch[:, r, :, :n], alone[:, 0], atol=1e-6)
            assert not batch[:, r, :, n:].any()


def test_a_subset_cannot_name_what_is_not_there():
    e = case()
    everything = torch.ones_like(e.resident)
    assert torch.equal(probabilities(e, 5, everything), probabilities(e, 5))
    assert torch.equal(mean_attention(e, 5, everything), mean_attention(e, 5))


def test_the_newest_of_more_remembered_queries():
    e = case(queries=8)
    fewer = dataclasses.replace(e, queries=e.queries[:, :, :, -3:], query_positions=e.query_positions[:, -3:])
    assert torch.equal(probabilities(e, 3), probabilities(fewer, 3))


@pytest.mark.parametrize("queries", [0, 3])
def test_too_few_remembered_queries_are_refused(queries):
    e = entries(geometry(), needs=Needs(queries=queries))
    for compute in (probabilities, mean_attention):
        with pytest.raises(MethodError, match="newest 4 queries"):
            compute(e, 4)


def test_absent_queries_do_not_count_in_the_mean():
    e = case(lengths=(1,), prompts=(0,), queries=5)
    assert e.query_positions.tolist() == [[-1, -1, 0, 1, 2]]
    e = dataclasses.replace(e, positions=torch.zeros_like(e.positions))
    # Three queries see the one entry, and each gives it all.
    assert torch.allclose(mean_attention(e, 5), torch.ones(()))
    none = dataclasses.replace(e, query_positions=torch.full_like(e.query_positions, -1))
    assert not mean_attention(none, 5).any()


@pytest.mark.parametrize("elements", [1, 900, 2500, 10**6])
def test_blocks_change_nothing(elements, monkeypatch):
    e = case()
    want = mean_attention(e, 5)
    monkeypatch.setattr(attention, "_CHUNK_ELEMENTS", elements)
    assert torch.allclose(mean_attention(e, 5), want, atol=1e-7)


def test_identical_keys_zero_queries_and_a_spike():
    e = case(lengths=(12,), prompts=(2,))
    even = torch.where(e.positions <= e.query_positions[0, 0], 1.0, 0)
    for name, flat in (("keys", torch.ones_like(e.keys)), ("queries", torch.zeros_like(e.queries))):
        got = probabilities(dataclasses.replace(e, **{name: flat}), 5)[:, :, :, :, 0]
        assert torch.allclose(got, (even / even.sum(-1, keepdim=True)).unsqueeze(3).expand_as(got))
    spike = e.keys.index_fill(3, torch.tensor(4), 0).index_add(
        3, torch.tensor(4), 1e4 * e.queries[:, :, ::2, -1:].contiguous()
    )
    got = probabilities(dataclasses.replace(e, keys=spike), 5)
    assert torch.allclose(got[:, :, :, 0, -1, 4], torch.ones(())) and torch.isfinite(got).all()


def test_nan_in_a_resident_key_shows():
    e = case()
    e.keys[1, 0, 1, 3] = torch.nan
    got = mean_attention(e, 5)
    assert got[1, 0, 1].isnan().any() and not got[0].isnan().any() and not got[1, 1:].isnan().any()


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_pooling_equals_the_loops(data):
    count = data.draw(st.integers(1, 12))
    scores = [data.draw(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0])) for _ in range(count)]
    length = data.draw(st.integers(0, count))
    kernel, kind = data.draw(st.sampled_from([1, 3, 5, 7, 27])), data.draw(st.sampled_from(attention.POOLINGS))
    mask = [i < length for i in range(count)]
    given_ = torch.tensor([s if m else torch.nan for s, m in zip(scores, mask, strict=True)]).view(1, 1, 1, -1)
    got = pool(given_, torch.tensor(mask).view(1, 1, 1, -1), kernel, kind)
    assert torch.allclose(got.flatten(), torch.tensor(oracle.pool(scores, mask, kernel, kind)), atol=1e-6)


@pytest.mark.parametrize("pooling", attention.POOLINGS)
def test_a_kernel_of_one_is_the_identity(pooling):
    scores = torch.rand(3, 2, 2, 9, generator=torch.Generator().manual_seed(2))
    assert torch.equal(pool(scores, torch.ones_like(scores, dtype=torch.bool), 1, pooling), scores)


@pytest.mark.parametrize("kernel", [-1, 0, 2])
def test_an_even_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match="odd"):
        pool(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), kernel, "max")


def test_the_attention_bias_of_entries_is_in_the_logits():
    """An entry that stands for n alike ones with bias log n gets the weight that all of them would get."""
    e = entries(geometry(), lengths=(6,), prompts=(2,), needs=Needs(queries=3), junk=False)
    keys = torch.cat([e.keys[..., :1, :]] * 4 + [e.keys[..., 1:, :]], -2)
    positions = torch.cat([e.positions[..., :1]] * 4 + [e.positions[..., 1:]], -1)
    several = dataclasses.replace(e, keys=keys, values=keys, positions=positions)
    mass = torch.tensor([4.0, 1, 1, 1, 1, 1]).log().expand(e.positions.shape)
    one = dataclasses.replace(e, traits={"log_mass": mass}, bias="log_mass")
    want = mean_attention(several, 3)
    want = torch.cat([want[..., :4].sum(-1, keepdim=True), want[..., 4:]], -1)
    assert torch.allclose(mean_attention(one, 3), want, atol=1e-6)
    assert torch.allclose(probabilities(one, 3).sum(-1), torch.ones(()), atol=1e-6)
