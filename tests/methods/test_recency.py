"""StreamingLLM: its closed form, and re-indexing against a cache of unrotated keys."""

import pytest
import torch
from cask_methods.presets.recency import Recency
from cask_methods.presets.recency_pp import RecencyPP
from cask_methods.rotary import rotate
from engine_models import build
from method_cases import entries, geometry
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Host
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry as geometry_of
from cask_eval.engine.sampling import Sampling


def test_recency_is_its_closed_form():
    e = entries(geometry(), lengths=(20, 14), prompts=(6, 5))
    policy = Recency().bind(Host(e.geometry))
    keep = policy.compress(e, torch.tensor([10, 9])).keep
    for r, (n, target) in enumerate(((20, 10), (14, 9))):
        assert keep[0, r, 0].nonzero().flatten().tolist() == [*range(4), *range(n - target + 4, n)]
    keep = RecencyPP().bind(Host(e.geometry)).compress(e, torch.tensor([10, 9])).keep
    assert keep[0, 0, 0].nonzero().flatten().tolist() == [*range(6), *range(16, 20)]


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
