"""TOVA against plain loops, and its one set per layer."""

import dataclasses

import attention_oracle as oracle
import pytest
import torch
from cask_methods.presets.tova import TOVA
from cask_methods.scorers.tova import TOVAScorer
from method_cases import entries, geometry, single

from cask_eval.engine.contract import Host, Needs

TARGET = torch.tensor([12, 9, 5])


def case(seed=0, **kw):
    return entries(geometry(), seed=seed, needs=TOVAScorer.needs, **kw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_equal_the_loops(dtype):
    e = case(dtype=dtype)
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    got = TOVAScorer().score(e, candidates)
    assert got.shape == (3, 3, 1, 20) and got.dtype == torch.float32
    for layer in range(3):
        for r in range(3):
            heads = [oracle.mean(e, layer, r, h, 1) for h in range(2)]
            want = torch.tensor([sum(x) / 2 for x in zip(*heads, strict=True)])
            assert torch.allclose(got[layer, r, 0], want.masked_fill(~candidates[layer, r, 0], 0), atol=1e-5)


def test_the_current_token_takes_part():
    e = case()
    whole = TOVAScorer().score(e, e.resident)
    assert torch.allclose(whole.sum(-1), torch.ones(())) and (whole[:, 0, :, 19] > 0).all()


def test_only_the_newest_of_more_remembered_queries_counts():
    e = entries(geometry(), needs=Needs(queries=4))
    last = dataclasses.replace(e, queries=e.queries[:, :, :, 3:], query_positions=e.query_positions[:, 3:])
    assert torch.equal(TOVAScorer().score(e, e.resident), TOVAScorer().score(last, e.resident))


@pytest.mark.parametrize("prompt", ["pinned", "compete"])
@pytest.mark.parametrize("recent", [0, 3])
def test_one_set_per_layer_and_the_best_of_the_rest(prompt, recent):
    e = case(seed=4)
    method = TOVA(prompt=prompt, recent=recent)
    keep = method.bind(Host(e.geometry)).compress(e, TARGET).keep
    assert (keep == keep[:, :, :1]).all() and not (keep == keep[:1]).all()
    assert (keep.sum(-1) == TARGET[:, None]).all()
    protected = method.protected(e, TARGET)
    scores = TOVAScorer().score(e, e.resident & ~protected).expand(keep.shape)
    for at in oracle.every(e):
        pool = [i for i in range(20) if e.resident[at][i] and not protected[at][i]]
        best = sorted(pool, key=lambda i: (-float(scores[at][i]), i))[: int(TARGET[at[1]] - protected[at].sum())]
        want = set(best) | set(protected[at].nonzero().flatten().tolist())
        assert set(keep[at].nonzero().flatten().tolist()) == want


def test_a_batch_of_unequal_rows_equals_singles():
    e = case(seed=9)
    policy = TOVA().bind(Host(e.geometry))
    batch = policy.compress(e, TARGET).keep
    for r in range(3):
        alone = policy.compress(single(e, r), TARGET[r : r + 1]).keep
        assert torch.equal(alone[:, 0], batch[:, r, :, : alone.shape[-1]])


def test_identical_keys_keep_the_lower_positions():
    e = case()
    e = dataclasses.replace(e, keys=torch.ones_like(e.keys))
    keep = TOVA(prompt="compete").bind(Host(e.geometry)).compress(e, TARGET).keep
    assert (keep == (torch.arange(20) < TARGET[None, :, None, None])).all()


def test_nan_is_refused():
    e = case()
    e.keys[1, 0, 1, 10] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        TOVA().bind(Host(e.geometry)).compress(e, TARGET)


def test_the_remembered_query_is_charged():
    geo = geometry()
    assert TOVA().footprint(geo).fixed_bytes == geo.layers * geo.query_heads * geo.head_dim * 4
