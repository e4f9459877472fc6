"""TriAttention's score by the kernel against un-rotated keys in fp64, and against the eager path."""

import dataclasses
from itertools import product

import pytest
import torch
from cask_methods.scorers.triattention import OFFSETS, TriAttentionScorer
from method_cases import entries, geometry, statistics
from test_kernel_compact import on


@pytest.fixture(scope="module")
def trig_score(device):
    from cask_methods.kernels import trig_score

    return trig_score


def oracle(e, stats, candidates, scorer):
    """By the published way: keys rotated back to position 0, a cosine for each distance. fp64."""
    geo, half = e.geometry, e.geometry.head_dim // 2
    inv, s = geo.inv_freq, geo.scaling
    out = torch.zeros(candidates.shape, dtype=torch.float64)
    for layer, row, head in product(*(range(m) for m in candidates.shape[:3])):
        live = candidates[layer, row, head].nonzero().flatten()
        if not len(live):
            continue
        k = e.keys[layer, row, head, live].double()
        at = e.positions[layer, row, head, live].double()[:, None]
        z = torch.polar(torch.ones_like(at * inv), -at * inv) * torch.complex(k[:, :half], k[:, half:]) / s
        each = []
        for q in range(head * geo.groups, (head + 1) * geo.groups):
            c = torch.complex(stats.c_re[layer, q].double(), stats.c_im[layer, q].double())
            m = stats.m[layer, q].double()
            aside = ((m if scorer.disable_mlr else m - c.abs()) * z.abs()).sum(-1)
            distances = [int(e.length[row]) - at + offset for offset in OFFSETS]
            turned = [((c * z.conj()).abs() * (inv * d + (c * z.conj()).angle()).cos()).sum(-1) for d in distances]
            turned = torch.stack([t * (not scorer.disable_trig) for t in turned])
            score = s * s * ((turned.mean(0) if scorer.aggregation == "mean" else turned.amax(0)) + aside)
            if scorer.normalise:
                score = (score - score.mean()) / score.var(correction=0).sqrt().clamp_min(1e-6)
            each.append(score)
        each = torch.stack(each)
        out[layer, row, head, live] = each.amax(0) if scorer.group == "max" else each.mean(0)
    if scorer.mode == "global":
        return out.amax((0, 2), keepdim=True)
    return out.mean(0, keepdim=True) if scorer.mode == "per_head" else out


def case(device, lengths=(20, 14, 7), prompts=(5, 3, 2), dtype=torch.float32, **shape):
    geo = geometry(**{"layers": 2, **shape})
    e = entries(geo, lengths, prompts, dtype=dtype)
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    moved = on(device, e)
    return moved, statistics(geo), candidates.to(device)


def check(e, stats, candidates, use, close=2e-5, **parameters):
    scorer = TriAttentionScorer(statistics=stats, **parameters)
    eager = scorer.score(e, candidates)
    use("trig_score")
    got = scorer.score(e, candidates)
    use("")
    assert got.dtype == torch.float32 and got.shape == eager.shape
    assert torch.allclose(got, eager, rtol=0, atol=close)
    want = oracle(on("cpu", e), stats, candidates.cpu(), scorer)
    assert torch.allclose(got.cpu().double(), want, rtol=0, atol=close)
    if scorer.mode == "per_layer_head":
        assert not got[~candidates].any()


@pytest.mark.parametrize("groups", [4, 7])
@pytest.mark.parametrize("head_dim", [16, 20])
def test_the_default(trig_score, device, use, groups, head_dim):
    check(*case(device, groups=groups, head_dim=head_dim, scaling=1.2), use)


@pytest.mark.parametrize("mode", ["per_layer_head", "per_head", "global"])
@pytest.mark.parametrize(("normalise", "group"), [(True, "mean"), (False, "max")])
def test_modes(trig_score, device, use, mode, normalise, group):
    e, stats, candidates = case(device, kv_heads=2, lengths=(15, 15, 15), prompts=(2, 2, 2))
    candidates = torch.ones_like(candidates)
    check(e, stats, candidates, use, mode=mode, normalise=normalise, group=group)


@pytest.mark.parametrize("switches", [{"disable_trig": True}, {"disable_mlr": True}, {"aggregation": "max"}])
@pytest.mark.parametrize("normalise", [True, False])
def test_ablations(trig_score, device, use, switches, normalise):
    check(*case(device, layers=1), use, normalise=normalise, **switches)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (33, 32, 31), (100, 2, 1)])
def test_lengths(trig_score, device, use, lengths):
    check(*case(device, lengths, (0, 0, 0), layers=1), use)


def test_bfloat16_keys(trig_score, device, use):
    e, stats, candidates = case(device, dtype=torch.bfloat16)
    check(e, stats, candidates, use)


def test_rows_without_candidates_and_equal_keys(trig_score, device, use):
    e, stats, candidates = case(device, layers=1)
    candidates[:, 1] = False
    check(e, stats, candidates, use)
    alike = dataclasses.replace(e, keys=torch.ones_like(e.keys))
    scorer = TriAttentionScorer(statistics=stats)
    use("trig_score")
    # The deviation is rounding, and stays below its floor.
    assert scorer.score(alike, candidates).abs().max() <= 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("group", ["max", "mean"])
def test_what_is_not_finite_is_not_hidden(trig_score, device, use, broken, normalise, group):
    e, stats, candidates = case(device, layers=1)
    e.keys[0, 0, 0, 17, 3] = broken
    scorer = TriAttentionScorer(statistics=stats, normalise=normalise, group=group)
    eager = scorer.score(e, candidates)
    use("trig_score")
    got = scorer.score(e, candidates)
    assert torch.equal(got.isnan(), eager.isnan()) and torch.equal(got.isfinite(), eager.isfinite())
    assert not got.isfinite().all()


def test_statistics_in_fp64_are_left_to_the_eager_path(trig_score, device, use):
    e, _, candidates = case(device)
    use("trig_score")
    got = TriAttentionScorer(statistics=statistics(e.geometry, dtype=torch.float64)).score(e, candidates)
    assert got.dtype == torch.float64
