"""StreamingLLM: its closed form, and re-indexing against a cache of unrotated keys."""

from dataclasses import replace

import pytest
import torch
from cask_methods.presets.recency import Recency
from cask_methods.presets.recency_pp import RecencyPP
from cask_methods.representations.reindex import Reindex
from cask_methods.rotary import rotate
from engine_models import build
from method_cases import entries, geometry
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Host, Selection
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry as geometry_of
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import MethodError


def test_recency_is_its_closed_form():
    e = entries(geometry(), lengths=(20, 14), prompts=(6, 5))
    policy = Recency().bind(Host(e.geometry))
    keep = policy.compress(e, torch.tensor([10, 9])).keep
    for r, (n, target) in enumerate(((20, 10), (14, 9))):
        assert keep[0, r, 0].nonzero().flatten().tolist() == [*range(4), *range(n - target + 4, n)]
    for method in (RecencyPP(), Recency(prompt="pinned")):
        keep = method.bind(Host(e.geometry)).compress(e, torch.tensor([10, 9])).keep
        assert keep[0, 0, 0].nonzero().flatten().tolist() == [*range(6), *range(16, 20)]
    # A sink that is longer than a protected prompt.
    keep = Recency(prompt="pinned", sink=7).bind(Host(e.geometry)).compress(e, torch.tensor([10, 9])).keep
    assert keep[0, 0, 0].nonzero().flatten().tolist() == [*range(7), *range(17, 20)]


def drift(budget, delta, events):
    """Mean and largest relative error of re-indexed bfloat16 keys after so many events: against the same keys, as
    they were first cached, turned once in fp64 to where they stand."""
    sink, half = 4, 64
    geo = replace(geometry(layers=1, kv_heads=2, groups=1, head_dim=2 * half), dtype=torch.bfloat16)
    part, g = Reindex(delta), torch.Generator().manual_seed(0)
    n = budget + delta
    keys = torch.empty(1, 1, 2, 0, 2 * half, dtype=torch.bfloat16)
    plain = torch.empty(1, 1, 2, 0, half, dtype=torch.complex128)  # without rotation
    e = entries(geo, (n,), (0,), scattered=False)
    keep = torch.ones(1, 1, 2, n, dtype=torch.bool)
    keep[..., sink : n - (budget - sink)] = False

    def turns(first, last):
        return torch.exp(1j * torch.arange(first, last)[:, None] * geo.inv_freq)

    for _ in range(events):
        held = keys.shape[3]
        fresh = torch.randn(1, 1, 2, n - held, 2 * half, generator=g).bfloat16()
        pairs = torch.complex(fresh[..., :half].double(), fresh[..., half:].double())
        keys, plain = torch.cat([keys, fresh], 3), torch.cat([plain, pairs / turns(held, n)], 3)
        done, _ = part.represent(replace(e, keys=keys), Selection(keep))
        keys, plain = done.keys[..., keep[0, 0, 0], :], plain[..., keep[0, 0, 0], :]
    want = torch.view_as_real(plain * turns(0, budget)).transpose(-1, -2).flatten(-2)
    error = ((keys.double() - want).norm(dim=-1) / want.norm(dim=-1))[..., sink:]
    return float(error.mean()), float(error.max())


@pytest.mark.parametrize("budget, mean, worst", [(64, 0.0017, 0.002), (512, 0.0026, 0.005)])
def test_reindexing_drifts_in_bfloat16_as_admitted(budget, mean, worst):
    got = drift(budget, 128, 50)
    assert got[0] == pytest.approx(mean, rel=0.05) and 0.8 * worst < got[1] < 1.1 * worst
    text = " ".join(Recency.deviations)
    assert f"{100 * mean:.2f} %" in text and f"{100 * worst:.1f} %" in text


def test_reindexing_at_close_events_would_drift_far():
    assert drift(64, 1, 128)[0] > 10 * drift(64, 128, 3)[0]
    assert drift(512, 16, 64)[0] < 0.013


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params, steps", [({"trigger": "every_step"}, 1), ({"delta": 15}, 15)])
def test_reindexing_at_close_events_is_refused_in_16_bits(dtype, params, steps):
    host = Host(replace(geometry(), dtype=dtype))
    with pytest.raises(MethodError, match=f"at least 16 steps between events, not {steps}. Set trigger"):
        Recency(reindex=True, **params).bind(host)
    Recency(reindex=True, **params).bind(Host(geometry()))
    Recency(reindex=False, **params).bind(host)
    Recency(reindex=True, delta=16).bind(host)


@pytest.mark.parametrize("family", ["llama", "yarn"])
@torch.inference_mode()
def test_reindexing_equals_rotating_unrotated_keys_to_their_places(family):
    """The reference keeps keys unrotated (every token goes through the model at position 0) and rotates all of them
    to 0 … n − 1 at every step, as the paper does."""
    model = build(family)
    model.set_attn_implementation(NAME)
    shape, prompt, sink, budget, delta, new = geometry_of(model), (5, 17, 60, 2, 33), 2, 9, 3, 30
    policy = Recency(sink=sink, delta=delta, reindex=True).bind(Host(shape))
    (out,) = generate(model, [Request(0, prompt, 1)], policy, policy.schedule(budget), Sampling(new))

    cache: list[list[torch.Tensor]] = [[] for _ in range(shape.layers)]

    def attend(module, q, k, v, attention_mask, scaling, **_):
        held = cache[module.layer_idx]
        held.append(torch.cat([k[0, :, 0] / shape.scaling, v[0, :, 0]], -1))
        both = torch.stack(held, 1)
        keys, values = both.split(shape.head_dim, -1)
        n = len(held)
        keys = rotate(keys, torch.arange(n), shape)
        query = rotate(q[0, :, 0] / shape.scaling, torch.tensor(n - 1), shape).view(shape.kv_heads, -1, shape.head_dim)
        weights = (query @ keys.transpose(-1, -2) * scaling).softmax(-1)
        return (weights @ values).reshape(1, 1, shape.query_heads, shape.head_dim), None

    ALL_ATTENTION_FUNCTIONS.register("unrotated_keys", attend)
    model.set_attn_implementation("unrotated_keys")
    tokens = list(prompt)
    for i in range(len(prompt) + new - 1):
        logits = model(torch.tensor([[tokens[i]]]), position_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False)
        if i >= len(prompt) - 1:
            tokens.append(int(logits.logits[0, -1].argmax()))
        if len(cache[0]) >= budget + delta and i >= len(prompt):
            for held in cache:
                del held[sink : len(held) - (budget - sink)]
    assert tuple(tokens[len(prompt) :]) == out.output_ids
    assert len(out.residency.events) > 3
