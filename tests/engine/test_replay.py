"""Replay's numbers against fp64 and brute force, a full-cache generation replayed, and refusals."""

import numpy as np
import pytest
import torch
from engine_models import build, prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import bound, requests

from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Needs
from cask_eval.engine.decode import generate
from cask_eval.engine.replay import Given, compare, dense, entropy, replay
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import MethodError, ModelError


def replayed(model, wanted, policy, budget, **kwargs):
    return {o.key: o for o in replay(model, wanted, policy, policy.schedule(budget), **kwargs)}


def greedy(model, new, count=5):
    policy = bound(model, "fullkv")
    out = {o.key: o for o in generate(model, requests(count), policy, policy.schedule(1), Sampling(new))}
    return [Given(r.key, r.prompt_ids, r.seed, out[r.key].output_ids) for r in requests(count)]


def test_a_greedy_full_cache_generation_is_its_own_argmax(model, plain):
    """The ceiling: rank 1 throughout, and the negative log-probabilities of transformers' own forward."""
    wanted = greedy(model, 24)
    full = {r.key: dense(model, r) for r in wanted}
    found = replayed(model, wanted, bound(model, "fullkv"), 1, full=full, slots=3)
    for request in wanted:
        o, ids = found[request.key], [*request.prompt_ids, *request.continuation]
        logits = plain(torch.tensor([ids]), use_cache=False).logits[0, len(request.prompt_ids) - 1 : -1]
        nll = -logits.double().log_softmax(-1)[torch.arange(24), list(request.continuation)]
        assert (o.tokens.rank == 1).all() and not o.tokens.compressed.any()
        assert np.abs(o.tokens.nll[0] - nll.numpy()).max() < 1e-5
        assert o.tokens.kl.max() < 1e-6
        assert not o.residency.events and o.residency.steps == 23
        assert torch.allclose(full[request.key], logits, atol=1e-4)


@given(st.integers(1, 40), st.integers(2, 30), st.integers(0, 2**31), st.booleans())
@settings(max_examples=60, deadline=None)
def test_numbers_per_token_by_brute_force(count, vocabulary, seed, coarse):
    g = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(count, vocabulary, generator=g) * 4 for _ in range(2))
    if coarse:  # with ties
        p, q = p.round(), q.round()
    targets = torch.randint(0, vocabulary, (count,), generator=g)
    nll, rank, kl, sound = compare(q, targets, p)
    assert sound.all()
    for i, target in enumerate(targets.tolist()):
        log_q, log_p = q[i].double().log_softmax(0), p[i].double().log_softmax(0)
        assert float(nll[i]) == pytest.approx(-float(log_q[target]), abs=2e-6, rel=1e-6)
        assert float(kl[i]) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), abs=1e-5, rel=1e-5)
        order = sorted(range(vocabulary), key=lambda t: (-float(q[i, t]), t))
        assert int(rank[i]) == 1 + order.index(target)
        assert float(entropy(p)[i]) == pytest.approx(-float((log_p.exp() * log_p).sum()), abs=2e-5)
    assert compare(q, targets)[2].eq(0).all()
    assert compare(q, targets, q)[2].max() < 1e-6


def test_pieces_do_not_matter(monkeypatch):
    logits, full = torch.randn(50, 11), torch.randn(50, 11)
    targets = torch.randint(0, 11, (50,))
    whole, spread = compare(logits, targets, full), entropy(logits)
    monkeypatch.setattr("cask_eval.engine.replay._COMPARED", 33)
    assert all(torch.equal(a, b) for a, b in zip(whole, compare(logits, targets, full), strict=True))
    assert torch.equal(spread, entropy(logits))


def test_a_token_that_is_ruled_out_is_not_lost_in_the_divergence():
    p, q = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[1.0, 0.0, 5.0]])
    kl = compare(q, torch.tensor([0]), p)[2]
    a, b = p[0, :2].double().softmax(0), q[0].double().softmax(0)[:2]
    assert float(kl) == pytest.approx(float((a * (a / b).log()).sum()), abs=1e-6)
    assert float(entropy(p)) == pytest.approx(-float((a * a.log()).sum()), abs=1e-6)


def test_one_given_token_is_not_fed(model):
    wanted = [Given(r.key, r.prompt_ids, r.seed, r.prompt_ids[:1]) for r in requests(3)]
    found = replayed(model, wanted, bound(model, "recency", delta=4), 8)
    assert {o.residency.entries for o in found.values()} == {0}
    assert {o.tokens.nll.shape for o in found.values()} == {(1, 1)}


def test_merged_entries_stand_for_the_tokens_they_took_in(model, tmp_path_factory):
    wanted, settings = greedy(model, 40), {"delta": 4, "prompt": "compete", "recent": 2}
    policy = bound(model, "tri_merge", tmp_path_factory, threshold="-1", **settings)
    for key, o in replayed(model, wanted, policy, 16).items():
        # Everything evicted finds a place, so nothing is lost.
        assert o.stands_for == len(wanted[key].prompt_ids) + 39
        assert o.residency.events
    for o in replayed(model, wanted, bound(model, "triattention", tmp_path_factory, **settings), 16).values():
        assert o.stands_for == 16 + (o.residency.steps - o.residency.events[-1][0])
    with pytest.raises(MethodError, match="count an entry's tokens, in a and in b"):
        Needs(mass="a") | Needs(mass="b")


def test_memory_bounds_only_the_chunks(model, monkeypatch):
    wanted, policy = greedy(model, 40), bound(model, "recency", delta=16, prompt="outside")
    want = replayed(model, wanted, policy, 8)
    for name, value in (("_LOGITS", 97 * 5 * 3), ("_MASK", 4 * 5 * 200), ("READ_TOKENS", 17)):
        monkeypatch.setattr(f"cask_eval.engine.replay.{name}", value)
        found = replayed(model, wanted, policy, 8)
        assert found == want
        for key, o in want.items():
            assert np.abs(found[key].tokens.nll - o.tokens.nll).max() < 1e-5
        monkeypatch.undo()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_types(dtype):
    """Products round differently in a block; residency does not."""
    model = build("qwen3").to(dtype)
    model.set_attn_implementation(NAME)
    wanted, policy = greedy(model, 30), bound(model, "h2o", delta=4, prompt="compete")
    full = {r.key: dense(model, r) for r in wanted}
    single, whole = (replayed(model, wanted, policy, 12, full=full, chunk=chunk) for chunk in (1, None))
    assert {k: o.residency for k, o in single.items()} == {k: o.residency for k, o in whole.items()}
    assert all(np.isfinite(o.tokens.kl).all() for o in whole.values())


def test_refusals(model, plain):
    policy = bound(model, "recency", delta=4)
    (r,) = requests(1)
    with pytest.raises(MethodError, match="trial 0 has an empty continuation"):
        replayed(model, [Given(r.key, r.prompt_ids, r.seed, ())], policy, 8)
    given = Given(r.key, r.prompt_ids, r.seed, (1, 2, 3))
    with pytest.raises(MethodError, match="full-cache logits of its 3 tokens, and has none"):
        replayed(model, [given], policy, 8, full={})
    with pytest.raises(MethodError, match="of its 3 tokens, and has those of 2"):
        replayed(model, [given], policy, 8, full={0: torch.zeros(2, 97)})
    with pytest.raises(MethodError, match="empty prompt"):
        replayed(model, [Given(0, (), 1, (1,))], bound(model, "fullkv"), 8)
    with pytest.raises(ModelError, match="eager"):
        replayed(plain, [given], policy, 8)
    long = Given(0, tuple(range(1, 20)), 1, (1,))
    with pytest.raises(MethodError, match="budget 19 .* 19 are protected"):
        replayed(model, [long], bound(model, "random_pp", delta=4), 19)
    assert replayed(model, [], policy, 8) == {}


def test_broken_logits_raise():
    model = build("llama")
    model.set_attn_implementation(NAME)
    wanted = [Given(0, prompts(1)[0], 1, tuple(range(1, 9)))]
    # From the fourth given token on.
    last = len(wanted[0].prompt_ids) + 3

    def spoil(module, args, kwargs, output):
        if (at := kwargs["position_ids"][0] >= last - 1).any():
            output.logits[:, at[-output.logits.shape[1] :]] = float("nan")

    model.register_forward_hook(spoil, with_kwargs=True)
    with pytest.raises(FloatingPointError, match="trial 0: .* NaN logits at token 3"):
        replayed(model, wanted, bound(model, "fullkv"), 1)
