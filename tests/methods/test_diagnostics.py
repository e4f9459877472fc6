"""The costs of folding against loops in fp64, and what they must imply."""

import math

import pytest
import torch
from cask_methods.diagnostics import dispersion, horizon, key_distance, log_mass_error
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import geometry


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_horizon_is_the_mean_over_the_distances():
    inv = geometry(head_dim=8).inv_freq
    for f, kappa in enumerate(horizon(inv).tolist()):
        turns = [complex(math.cos(float(inv[f]) * 2**j), math.sin(float(inv[f]) * 2**j)) for j in range(17)]
        assert kappa == pytest.approx(sum(turns) / 17, abs=1e-12)
    assert horizon(torch.zeros(2)).tolist() == [1, 1]


def test_key_distance_equals_the_loop():
    kappa, a, b = horizon(geometry(head_dim=6).inv_freq), draw(4, 6), draw(4, 6, seed=1)
    for i, got in enumerate(key_distance(a, b, kappa).tolist()):
        parts = [abs(kappa[f].item()) * abs(complex(*(a - b)[i, f::3].tolist())) for f in range(3)]
        assert got == pytest.approx(sum(parts), abs=1e-12)


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_key_distance_is_a_distance_that_rotation_keeps(seed):
    geo = geometry(head_dim=8)
    kappa, (a, b, c) = horizon(geo.inv_freq), draw(3, 8, seed=seed)
    assert float(key_distance(a, a, kappa)) == 0
    assert torch.allclose(key_distance(a, b, kappa), key_distance(b, a, kappa))
    assert key_distance(a, c, kappa) <= key_distance(a, b, kappa) + key_distance(b, c, kappa) + 1e-12
    turned = [torch.view_as_real(torch.complex(*x.chunk(2)) * torch.exp(1j * geo.inv_freq)).T.flatten() for x in (a, b)]
    assert torch.allclose(key_distance(*turned, kappa), key_distance(a, b, kappa))


def case(seed=0):
    """Two rows of up to 7 members in up to 3 groups, for X = 2 heads; the second row has 2 groups and 4 members."""
    group = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, -1, -1, -1]])
    weight = draw(2, 7, seed=seed).abs()
    mass = (group[:, None] == torch.arange(3)[:, None]) * weight[:, None]
    shares = mass / mass.sum(-1, keepdim=True).clamp_min(1e-30)
    return group, shares


def test_dispersion_equals_the_loop():
    group, shares = case()
    kappa, keys, reps = horizon(geometry(head_dim=4).inv_freq), draw(2, 7, 2, 4), draw(2, 3, 2, 4, seed=1)
    of_each = reps.gather(1, group.clamp_min(0)[..., None, None].expand(2, 7, 2, 4))
    got = dispersion(keys, of_each, shares, kappa)
    assert got.shape == (2, 3, 2)
    for r in range(2):
        for g in range(3):
            for x in range(2):
                members = [i for i in range(7) if group[r, i] == g]
                far = [float(shares[r, g, i] * key_distance(keys[r, i, x], reps[r, g, x], kappa)) for i in members]
                assert float(got[r, g, x]) == pytest.approx(sum(far), abs=1e-12)


def test_alike_keys_have_no_dispersion():
    group, shares = case()
    keys = draw(1, 1, 2, 4).expand(2, 7, 2, 4)
    assert not dispersion(keys, keys, shares, horizon(geometry(head_dim=4).inv_freq)).any()


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_log_mass_error_equals_the_loop(scale):
    """Also where logits lie so far apart that their exponentials overflow or vanish."""
    group, _ = case()
    z, folded = draw(2, 7, 5) * scale, draw(2, 3, 5, seed=1)
    z[0, 0] += 2000
    got = log_mass_error(z, group, folded)
    for r in range(2):
        for g in range(3):
            for y in range(5):
                members = [float(z[r, i, y]) for i in range(7) if group[r, i] == g]
                if not members:
                    assert got[r, g, y] == 0
                    continue
                top = max(members)
                mass = top + math.log(math.fsum(math.exp(m - top) for m in members))
                assert float(got[r, g, y]) == pytest.approx(abs(mass - float(folded[r, g, y])), rel=1e-12, abs=1e-12)


def test_alike_entries_are_mistaken_by_the_logarithm_of_their_number():
    group = torch.tensor([[0, 0, 0, 0]])
    z = torch.full((1, 4, 1), -3.5)
    assert float(log_mass_error(z, group, z[:, :1])) == pytest.approx(math.log(4))
    assert float(log_mass_error(z, group, z[:, :1] + math.log(4))) == pytest.approx(0, abs=1e-6)


def test_in_fp32_too():
    group, shares = case()
    kappa, keys = horizon(geometry(head_dim=4).inv_freq), draw(2, 7, 2, 4)
    got = dispersion(keys.float(), keys.float() * 0, shares, kappa)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), dispersion(keys, keys * 0, shares, kappa), atol=1e-5)
