import dataclasses
import math

import pytest
import torch
from cask_methods.presets.value_norm import ValueNorm
from cask_methods.scorers.value_norm import FORMS, ValueNormScorer
from cask_methods.selectors.top_k import TopK
from cask_methods.standardise import standardise
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single


def oracle(e, candidates, form):
    out = torch.zeros(e.positions.shape, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(k) for k in e.positions.shape[:3])).tolist():
        at = tuple(index)
        live = candidates[at].nonzero().flatten().tolist()
        norm = [math.sqrt(sum(x * x for x in e.values[at][i].double().tolist())) for i in live]
        score = norm if form == "norm" else [math.log(x) for x in norm]
        if form == "standardised":
            mean = sum(score) / len(score)
            sigma = math.sqrt(sum((x - mean) ** 2 for x in score) / len(score))
            score = [(x - mean) / sigma for x in score]
        for i, x in zip(live, score, strict=True):
            out[at][i] = x
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 5e-6)])
def test_equals_the_oracle(dtype, atol, form):
    e = entries(geometry(head_dim=8), dtype=dtype)
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    got = ValueNormScorer(form).score(e, candidates)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert (got - oracle(e, candidates, form)).abs().max() <= atol


@pytest.mark.parametrize("form", FORMS)
def test_padding_protected_entries_and_keys_have_no_influence(form):
    e = entries(geometry())
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    scorer = ValueNormScorer(form)
    batch = scorer.score(e, candidates)
    assert torch.isfinite(batch).all() and (batch[~candidates] == 0).all()
    poisoned = dataclasses.replace(
        e, keys=e.keys * torch.nan, values=e.values.masked_fill(~candidates.unsqueeze(-1), torch.nan)
    )
    assert torch.equal(scorer.score(poisoned, candidates), batch)
    for r in range(3):
        alone = single(e, r)
        n = alone.positions.shape[-1]
        got = scorer.score(alone, candidates[:, r : r + 1, :, :n])
        assert torch.allclose(batch[:, r : r + 1, :, :n], got, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(-8, 8))
@settings(max_examples=30, deadline=None)
def test_the_standardised_form_does_not_know_the_values_scale(seed, power):
    e = entries(geometry(layers=1), seed=seed)
    other = dataclasses.replace(e, values=e.values * 2.0**power)
    scorer = ValueNormScorer("standardised")
    assert torch.allclose(scorer.score(other, e.resident), scorer.score(e, e.resident), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_zero_and_equal_values(form):
    e = entries(geometry(layers=1, kv_heads=1), lengths=(6,), prompts=(0,))
    e.values[..., 3, :] = 0
    got = ValueNormScorer(form).score(e, e.resident)[0, 0, 0]
    assert torch.isfinite(got).all() and got.argmin() == 3
    e = dataclasses.replace(e, values=torch.ones_like(e.values))
    got = ValueNormScorer(form).score(e, e.resident)
    assert (got == got[..., :1]).all() and (form != "standardised" or (got == 0).all())


def test_all_forms_rank_alike():
    e = entries(geometry())
    quota = torch.tensor([9, 6, 3])[None, :, None].expand(e.positions.shape[:-1])
    kept = [TopK().select(ValueNormScorer(f).score(e, e.resident), e.resident, quota, e).keep for f in FORMS]
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


def test_standardise_ignores_what_is_masked():
    scores = torch.tensor([[1.0, 3.0, 0.0, 5.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    sigma = math.sqrt(8 / 3)
    want = torch.tensor([[-2 / sigma, 0, 0, 2 / sigma], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert torch.allclose(standardise(scores, mask), want)


def test_preset_keeps_the_longest_values():
    assert ValueNorm().scorer() == ValueNormScorer("norm")
