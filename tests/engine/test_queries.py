"""Calibration sees what the rotary embedding receives: un-rotating the queries that attention got gives the same."""

import torch
from engine_models import prompts

from cask_eval.engine import attention
from cask_eval.engine.model import geometry
from cask_eval.engine.queries import feed


def test_watched_queries_are_the_unrotated_queries_of_attention(model, monkeypatch):
    shape, ids = geometry(model), list(prompts(1, 12, 13)[0])
    seen, rotated = {}, {}
    inner = attention.scaled_dot_product_attention

    def spy(q, *args, **kwargs):
        rotated[len(rotated)] = q[0]
        return inner(q, *args, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    feed(model, [ids], lambda layer, q: seen.__setitem__(layer, q.clone()))
    half = shape.head_dim // 2
    turn = torch.exp(-1j * shape.inv_freq * torch.arange(len(ids), dtype=torch.float64)[:, None]) / shape.scaling
    assert sorted(seen) == list(range(shape.layers))
    for layer, q in rotated.items():
        z = torch.complex(q[..., :half].double(), q[..., half:].double()) * turn
        back = torch.cat([z.real, z.imag], -1).transpose(0, 1)
        assert torch.allclose(back, seen[layer].double(), atol=1e-4 * seen[layer].abs().max())
