import dataclasses
import math

import pytest
import torch
from cask_methods.presets.keydiff import KeyDiff
from cask_methods.scorers.keydiff import KeyDiffScorer
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single


def oracle(e, candidates):
    out = torch.zeros(e.positions.shape, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(k) for k in e.positions.shape[:3])).tolist():
        at = tuple(index)
        units = {}
        for i in e.resident[at].nonzero().flatten().tolist():
            key = e.keys[at][i].double().tolist()
            length = math.sqrt(sum(x * x for x in key))
            units[i] = [x / length if length else 0.0 for x in key]
        mean = [sum(u[d] for u in units.values()) / len(units) for d in range(e.keys.shape[-1])]
        length = math.sqrt(sum(x * x for x in mean))
        for i, u in units.items():
            if candidates[at][i]:
                out[at][i] = -sum(x * y for x, y in zip(u, mean, strict=True)) / length if length else 0.0
    return out


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_equals_the_oracle(dtype, atol):
    e = entries(geometry(head_dim=8), dtype=dtype)
    e.keys[:, 0, :, 3] = 0
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    got = KeyDiffScorer().score(e, candidates)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert (got - oracle(e, candidates)).abs().max() <= atol


@given(st.integers(0, 2**32 - 1), st.integers(-20, 20))
@settings(max_examples=30, deadline=None)
def test_invariant_to_the_keys_scale_and_to_values(seed, power):
    e = entries(geometry(layers=1), seed=seed)
    other = dataclasses.replace(e, keys=e.keys * 2.0**power, values=torch.full_like(e.values, torch.nan))
    got, want = (KeyDiffScorer().score(x, e.resident) for x in (other, e))
    assert torch.equal(got, want)


def test_padding_has_no_influence_and_protected_keys_do():
    """The mean key is that of all resident entries."""
    e = entries(geometry())
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    batch = KeyDiffScorer().score(e, candidates)
    assert torch.isfinite(batch).all() and (batch[~candidates] == 0).all()
    for r in range(3):
        alone = single(e, r)
        n = alone.positions.shape[-1]
        got = KeyDiffScorer().score(alone, candidates[:, r : r + 1, :, :n])
        assert torch.allclose(batch[:, r : r + 1, :, :n], got, atol=1e-6)
    turned = dataclasses.replace(e, keys=torch.where((e.resident & ~candidates).unsqueeze(-1), -e.keys, e.keys))
    assert not torch.allclose(KeyDiffScorer().score(turned, candidates), batch, atol=1e-3)


def test_identical_keys_tie_and_an_opposite_one_wins():
    e = entries(geometry(layers=1, kv_heads=1), lengths=(6,), prompts=(0,))
    keys = e.keys[:, :, :, :1].expand_as(e.keys).clone()
    e = dataclasses.replace(e, keys=keys)
    assert torch.allclose(KeyDiffScorer().score(e, e.resident), torch.tensor(-1.0))
    keys[..., 2, :] *= -3
    got = KeyDiffScorer().score(e, e.resident)[0, 0, 0]
    assert got.argmax() == 2 and got[2] == pytest.approx(1)


def test_keys_that_cancel_have_no_mean():
    e = entries(geometry(layers=1, kv_heads=1, head_dim=2), lengths=(4,), prompts=(0,))
    e = dataclasses.replace(e, keys=torch.tensor([[1.0, 0], [0, 2], [-3, 0], [0, -4]])[None, None, None])
    assert (KeyDiffScorer().score(e, e.resident) == 0).all()


def test_preset_protects_first_and_newest():
    assert KeyDiff().scorer() == KeyDiffScorer()
    e = entries(geometry(), prompts=(0, 0, 0), scattered=False)
    kept = KeyDiff(prompt="compete").protected(e, torch.tensor([15, 13, 7]))
    assert kept[0, 0, 0].nonzero().flatten().tolist() == [0, 1, 2, 3, *range(12, 20)]
