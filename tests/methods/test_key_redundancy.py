"""Key redundancy as a score, shifted scores, and the two mechanisms made of them (M6, M7)."""

import dataclasses
import math

import pytest
import torch
from cask_methods.presets.tri_redundancy import TriRedundancy
from cask_methods.presets.tri_value_norm import TriValueNorm
from cask_methods.presets.triattention import TriAttention
from cask_methods.scorers.expected_attention import ExpectedAttentionScorer
from cask_methods.scorers.h2o import H2OScorer
from cask_methods.scorers.key_redundancy import KeyRedundancyScorer
from cask_methods.scorers.recency import RecencyScorer
from cask_methods.scorers.shifted import ShiftedScorer
from cask_methods.scorers.value_norm import ValueNormScorer
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single, statistics

from cask_eval.engine.contract import Entries, Host, Needs
from cask_eval.errors import MethodError

MODES = ("per_layer_head", "per_head", "global")


def competing(e: Entries) -> torch.Tensor:
    return e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))


def clustered(geo, seed=0, dtype=torch.float32, **kw) -> Entries:
    """Keys around few directions, so that many resemble others."""
    e = entries(geo, seed=seed, **kw)
    g = torch.Generator().manual_seed(seed)
    hubs = torch.randn(4, geo.head_dim, generator=g)
    keys = hubs[torch.randint(4, e.positions.shape, generator=g)] + 0.6 * torch.randn(e.keys.shape, generator=g)
    e = dataclasses.replace(e, keys=torch.where(e.resident.unsqueeze(-1), keys, torch.nan).to(dtype))
    return dataclasses.replace(e, values=e.values.to(dtype))


def cosine(a, b):
    na, nb = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb) if na and nb else 0.0


def share(keys):
    """R-KV's D of one layer and head, from its definition."""
    n = len(keys)
    rows = [[cosine(a, b) if i != j else 0.0 for j, b in enumerate(keys)] for i, a in enumerate(keys)]
    for row in rows:
        row[max((j for j in range(n) if row[j] > 0.5), default=0)] = 0.0
    means = [sum(rows[i][j] for i in range(n)) / n for j in range(n)]
    total = sum(math.exp(x) for x in means)
    return [math.exp(x) / total for x in means]


def z(values):
    mean = sum(values) / len(values)
    sigma = max(math.sqrt(sum((x - mean) ** 2 for x in values) / len(values)), 1e-6)
    return [(x - mean) / sigma for x in values]


def worth(e, candidates, signal):
    """The signal of every layer and head on its own."""
    out = torch.zeros(e.positions.shape, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(k) for k in e.positions.shape[:3])).tolist():
        at = tuple(index)
        resident, live = (m[at].nonzero().flatten().tolist() for m in (e.resident, candidates))
        if signal == "value_norm":
            got = z([math.log(math.sqrt(sum(x * x for x in e.values[at][i].double().tolist()))) for i in live])
        else:
            shares = dict(zip(resident, share([e.keys[at][i].double().tolist() for i in resident]), strict=True))
            got = [-shares[i] for i in live]
            got = z(got) if signal == "standardised" else got
        for i, x in zip(live, got, strict=True):
            out[at][i] = x
    return out


def oracle(e, candidates, base, signal, weight):
    """Row by row; the signal is averaged where the base's score is shared."""
    signals = worth(e, candidates, signal)
    out = base.double().clone()
    for layer, r, h in torch.cartesian_prod(*(torch.arange(k) for k in base.shape[:3])).tolist():
        layers = range(e.positions.shape[0]) if base.shape[0] == 1 else [layer]
        heads = range(e.positions.shape[2]) if base.shape[2] == 1 else [h]
        live = candidates[layer, r, h].nonzero().flatten().tolist()
        scores = [float(base[layer, r, h, i]) for i in live]
        mean = sum(scores) / len(scores)
        tau = math.sqrt(sum((x - mean) ** 2 for x in scores) / len(scores))
        for i in live:
            mine = [float(signals[a, r, b, i]) for a in layers for b in heads]
            out[layer, r, h, i] += weight * tau * sum(mine) / len(mine)
    return out


@pytest.mark.parametrize("form", ["share", "standardised"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_score_equals_the_oracle(form, dtype):
    e = clustered(geometry(layers=2, head_dim=8), dtype=dtype)
    candidates = competing(e)
    got = KeyRedundancyScorer(form).score(e, candidates)
    assert (got - worth(e, candidates, form)).abs().max() < 2e-5 and (got[~candidates] == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("signal", "scorer"),
    [
        ("value_norm", ValueNormScorer("standardised")),
        ("standardised", KeyRedundancyScorer()),
        ("share", KeyRedundancyScorer("share")),
    ],
)
def test_shifted_equals_the_oracle_in_every_mode(signal, scorer, mode):
    geo = geometry(layers=2, head_dim=8)
    e = clustered(geo)
    candidates = competing(e)
    base = dataclasses.replace(TriAttention(mode=mode).scorer(), statistics=statistics(geo))
    scores = base.score(e, candidates)
    got = ShiftedScorer(base, scorer, 0.7).score(e, candidates)
    assert got.shape == scores.shape == (*((1, 3) if mode != MODES[0] else (2, 3)), 1 if mode == "global" else 2, 20)
    assert (got - oracle(e, candidates, scores, signal, 0.7)).abs().max() < 2e-5
    assert not torch.equal(got, scores)


@pytest.mark.parametrize("mode", MODES)
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_null_settings_reproduce_triattention_bit_for_bit(mode, seed):
    geo = geometry()
    e = entries(geo, seed=seed)
    # Keys drawn from a few make tied scores; zero values have no logarithm.
    e = dataclasses.replace(e, keys=e.keys.nan_to_num().sign(), values=torch.zeros_like(e.values))
    candidates = competing(e)
    stats = statistics(geo)
    want = dataclasses.replace(TriAttention(mode=mode).scorer(), statistics=stats).score(e, candidates)
    for cls, null in ((TriRedundancy, "lambda"), (TriValueNorm, "gamma")):
        assert cls.parameters()[null].metadata["null"] == 0 and cls.reference == "triattention"
        shifted = cls.make("m", {"mode": mode, null: "0"}).scorer()
        shifted = dataclasses.replace(shifted, base=dataclasses.replace(shifted.base, statistics=stats))
        assert torch.equal(shifted.score(e, candidates), want)


@pytest.mark.parametrize("cls", [TriRedundancy, TriValueNorm])
def test_batch_equals_singles_and_padding_stays_out(cls):
    geo = geometry()
    e = clustered(geo)
    candidates = competing(e)
    for mode in MODES:
        scorer = cls(mode=mode).scorer()
        scorer = dataclasses.replace(scorer, base=dataclasses.replace(scorer.base, statistics=statistics(geo)))
        batch = scorer.score(e, candidates)
        assert torch.isfinite(batch).all() and (batch[:, 1, :, 14:] == 0).all()
        for r in range(3):
            alone = single(e, r)
            n = alone.positions.shape[-1]
            got = scorer.score(alone, candidates[:, r : r + 1, :, :n])
            assert torch.allclose(batch[:, r : r + 1, :, :n], got, atol=1e-5)


def test_redundant_keys_lose_and_long_values_win():
    geo = geometry(layers=1, kv_heads=1, groups=1, head_dim=8)
    e = entries(geo, lengths=(8,), prompts=(0,))
    keys = torch.eye(8).repeat(1, 1, 1, 1, 1)
    keys[..., 5, :] = keys[..., 3, :] = keys[..., 2, :]
    e = dataclasses.replace(e, keys=keys, values=torch.ones_like(e.values))
    e.values[..., 6, :] = 9
    recency = RecencyScorer()
    plain = recency.score(e, e.resident)
    shift = (ShiftedScorer(recency, KeyRedundancyScorer(), 1.0).score(e, e.resident) - plain)[0, 0, 0]
    # Of three alike the newest is spared by both others, the second by the newest, the first by none.
    others = shift[[0, 1, 4, 5, 6, 7]]
    assert torch.allclose(others, others[:1], atol=1e-5) and shift[2] < shift[3] - 0.1 < others[0] - 0.2
    shift = (ShiftedScorer(recency, ValueNormScorer("standardised"), 1.0).score(e, e.resident) - plain)[0, 0, 0]
    assert shift[6] > 0 and int((shift < 0).sum()) == 7


def test_equal_scores_stay_equal():
    """No spread, no unit to shift in."""
    geo = geometry(layers=1)
    e = entries(geo, lengths=(8,), prompts=(0,))
    e = dataclasses.replace(e, keys=torch.zeros_like(e.keys))
    base = dataclasses.replace(TriAttention().scorer(), statistics=statistics(geo))
    assert (ShiftedScorer(base, ValueNormScorer("standardised"), 5.0).score(e, e.resident) == 0).all()


def test_a_composite_is_bound_named_and_needs_as_its_parts(tmp_path):
    geo = geometry()
    statistics(geo).save(tmp_path / "s.safetensors")
    shifted = ShiftedScorer(TriAttention().scorer(), ExpectedAttentionScorer(7), 0.5)
    assert shifted.name == "triattention + expected_attention"
    assert shifted.calibrated and shifted.needs == Needs(queries=7)
    assert not ShiftedScorer(RecencyScorer(), ValueNormScorer(), 1.0).calibrated
    bound = shifted.bind(Host(geo, str(tmp_path / "s.safetensors")))
    e = entries(geo, needs=bound.needs)
    assert torch.isfinite(bound.score(e, e.resident)).all()
    with pytest.raises(MethodError, match="calibration"):
        shifted.bind(Host(geo))
    for parts in ((H2OScorer(), RecencyScorer()), (RecencyScorer(), H2OScorer())):
        with pytest.raises(MethodError, match="h2o follows every attention read"):
            ShiftedScorer(*parts, 1.0)


def test_presets_pass_their_parameters_on():
    made = TriRedundancy.make("tri_redundancy", {"lambda": "0.25", "form": "share", "mode": "global"})
    assert made.scorer() == ShiftedScorer(TriAttention(mode="global").scorer(), KeyRedundancyScorer("share"), 0.25)
    made = TriValueNorm.make("tri_value_norm", {"gamma": "2", "mode": "per_head", "disable_mlr": True})
    base = TriAttention(mode="per_head", disable_mlr=True).scorer()
    assert made.scorer() == ShiftedScorer(base, ValueNormScorer("standardised"), 2.0)
    assert TriRedundancy().calibrated and TriValueNorm().calibrated
    assert (TriRedundancy.mechanism, TriValueNorm.mechanism) == ("M6", "M7")
