import cmath
import dataclasses

import pytest
import torch
from cask_methods.rotary import phases, rotate, turn, unrotate
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry


def oracle(x, position, geo, inverse=False):
    """One vector, component by component."""
    half = geo.head_dim // 2
    factor = 1 / geo.scaling if inverse else geo.scaling
    out = [0.0] * geo.head_dim
    for f, omega in enumerate(geo.inv_freq.tolist()):
        angle = -omega * position if inverse else omega * position
        z = complex(float(x[f]), float(x[f + half])) * cmath.exp(1j * angle) * factor
        out[f], out[f + half] = z.real, z.imag
    return out


@pytest.mark.parametrize("scaling", [1.0, 1.2689])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_equals_complex_arithmetic(dtype, atol, inverse, scaling):
    geo = geometry(head_dim=8, scaling=scaling)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, generator=g, dtype=torch.float64).to(dtype)
    positions = torch.tensor([[0, 1, 40], [7, 32_767, 131_071]])
    got = (unrotate if inverse else rotate)(x, positions, geo)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for i in range(2):
        for j in range(3):
            want = torch.tensor(oracle(x[i, j], int(positions[i, j]), geo, inverse), dtype=torch.float64)
            assert (got[i, j] - want).abs().max() <= atol * max(1, float(x[i, j].abs().max())) * 2


@given(st.integers(0, 2**32 - 1), st.integers(0, 200_000), st.integers(0, 200_000))
@settings(max_examples=40, deadline=None)
def test_there_and_back_and_relative(seed, p, shift):
    """unrotate undoes rotate, and products of two rotated vectors depend on their distance only."""
    geo = geometry(head_dim=16, scaling=1.3)
    x, y = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at = torch.tensor(p)
    assert torch.allclose(unrotate(rotate(x, at, geo), at, geo), x, atol=1e-12)
    near = rotate(x, at, geo) @ rotate(y, at + 5, geo)
    far = rotate(x, at + shift, geo) @ rotate(y, at + shift + 5, geo)
    assert abs(float(near - far)) < 1e-8


def test_position_zero_is_the_plain_vector():
    x = torch.randn(5, 16)
    assert torch.equal(rotate(x, torch.zeros(5, dtype=torch.int64), geometry()), x)


def test_positions_broadcast_and_chunks_change_nothing(monkeypatch):
    geo = geometry()
    e = entries(geo, junk=False)
    shared = e.positions[0, :, 0].view(1, 3, 1, -1)  # all layers and heads hold the same positions here
    whole = unrotate(e.keys, e.positions, geo)
    assert torch.equal(unrotate(e.keys, shared, geo), whole)
    monkeypatch.setattr("cask_methods.rotary._CHUNK_ELEMENTS", 1)
    assert torch.equal(unrotate(e.keys, e.positions, geo), whole)
    assert torch.equal(unrotate(e.keys, shared, geo), whole)
    assert torch.equal(unrotate(e.keys, shared[0, :, 0, None], geo), whole)


def test_nan_stays_where_it_was():
    geo = geometry()
    e = entries(geo)
    got = unrotate(e.keys, e.positions, geo)
    assert torch.equal(got.isnan().any(-1), ~e.resident)


def test_equals_the_models_own_rotation():
    """transformers computes angles in fp32; up to position 300 that costs less than 1e-4."""
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    for rope in (
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    ):
        config = LlamaConfig(
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rope_parameters=rope,
        )
        module = modeling.LlamaRotaryEmbedding(config)
        geo = dataclasses.replace(
            geometry(head_dim=16), inv_freq=module.inv_freq.double(), scaling=float(module.attention_scaling)
        )
        x = torch.randn(1, 2, 4, 16, generator=torch.Generator().manual_seed(0))
        at = torch.tensor([[0, 3, 77, 300]])
        cos, sin = module(x, at)
        want, _ = modeling.apply_rotary_pos_emb(x, x, cos, sin)
        assert torch.allclose(rotate(x, at[0], geo), want, atol=1e-4)
        assert torch.allclose(unrotate(want, at[0], geo), x, atol=1e-4)


def test_turn_by_phases_is_rotation_without_scaling():
    geo = geometry(scaling=1.0)
    x, at = torch.randn(4, 16), torch.tensor([1, 2, 3, 4])
    assert torch.equal(turn(x, phases(at, geo)), rotate(x, at, geo))
