"""Replay of given tokens is generation of the same tokens, for every registered method, however many pass at once."""

import pytest
import torch
from cases import NAMES, Case, case, encode, requests, run, small
from cask_methods.scorers.h2o import H2OScorer
from engine_models import prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_invariants import Watch

from cask_eval.engine import registry
from cask_eval.engine.replay import Given, dense, replay
from cask_eval.engine.sampling import Sampling
from cask_eval.footprint import Packing
from cask_eval.residency import walk


class Everything(registry.load("tri_merge")):
    """Watches every read, biases the attention and packs what it keeps."""

    def scorer(self):
        return H2OScorer()

    def packing(self):
        return Packing(4, 4, 8)


VARIANTS = {name: case(name) for name in NAMES} | {
    "cask-log-mass": case("cask", log_mass=True),
    "cask-reweighted": case("cask", representative="weighted_latest", recent=2),
    "tri_merge-log-mass": case("tri_merge", log_mass=True),
    "recency-reindexed": case("recency", reindex=True),
    "recency-every-step": case("recency", trigger="every_step"),
    "triattention-periodic": case("triattention", trigger="periodic", prompt="compete"),
    "triattention-published": case("triattention", prompt="pinned", overflow="first", recent=0),
    "everything": Case("everything", Everything.make("everything", {"delta": 4, "sink": 1, "log_mass": True})),
    "everything-slowly": Case("slowly", Everything.make("everything", {"delta": 19, "sink": 1, "log_mass": True})),
}


# To a replay they are like another one here: they score, select or share out differently and remember nothing of a kind
# of its own. CI runs them too.
ALIKE = {
    *("random_pp", "recency_pp", "tova", "keydiff", "value_norm", "pyramidkv", "ams_faithful", "dpp", "tri_adakv"),
    *("facility_location", "tri_pyramid", "tri_vote", "tri_redundancy", "tri_value_norm", "cask-reweighted"),
    *("recency-every-step", "everything-slowly", "tri_merge-log-mass"),
}


@pytest.fixture(params=[pytest.param(v, marks=pytest.mark.slow if v in ALIKE else ()) for v in VARIANTS])
def variant(request) -> Case:
    return VARIANTS[request.param]


_sampled: dict[int, tuple[int, ...]] = {}


def asked(model, host, length, count=5):
    """Prompts with continuations that no method would have said: sampled from the full cache."""
    if not _sampled or length > len(_sampled[0]):
        full, longest = small("fullkv").bind(host), max(length, 80)
        out = run(model, requests(prompts(5)), full, full.schedule(1), longest, sampling=Sampling(longest, 1.0))
        _sampled.update({key: o.output_ids for key, o in out.items()})
    return [Given(r.key, r.prompt_ids, r.seed, _sampled[r.key][:length]) for r in requests(prompts(count))]


def replayed(model, wanted, policy, schedule, **kwargs):
    return {o.key: o for o in replay(model, wanted, policy, schedule, **{"slots": 4, **kwargs})}


def logits_agree(a: Watch, b: Watch):
    for key, rows in a.rows.items():
        x, y = torch.stack(rows), torch.stack(b.rows[key])
        top = x.topk(2).values
        clear = top[:, 0] - top[:, 1] > 1e-4
        assert clear.any() and torch.equal(x.argmax(-1)[clear], y.argmax(-1)[clear])


def events_agree(a: Watch, b: Watch, packed: bool):
    """The same entries held and kept, and all that a method sees of them."""
    assert a.events.keys() == b.events.keys()
    for key in a.events:
        for (x, _, i, *positions), (y, _, j, *same) in zip(a.events[key], b.events[key], strict=True):
            assert positions == same
            assert (x.length, x.prefix, x.events, x.target) == (y.length, y.prefix, y.events, y.target)
            # Both are as wide as their company made them.
            n, t = min(x.positions.shape[-1], y.positions.shape[-1]), int(x.length)
            held = x.resident[..., :n]
            assert torch.equal(held, y.resident[..., :n])
            assert not x.resident[..., n:].any() and not y.resident[..., n:].any()
            assert torch.equal(x.tokens[:, :t], y.tokens[:, :t])
            near = {"rtol": 1e-4, "atol": 1e-4}
            if x.queries is not None:
                there = x.query_positions[0] >= 0
                assert torch.equal(x.query_positions, y.query_positions)
                assert torch.allclose(x.queries[..., there, :], y.queries[..., there, :], **near)
            for name, trait in x.traits.items():
                mask = held[:1, :, :1] if trait.shape[0] == 1 else held
                assert torch.allclose(trait[..., :n][mask], y.traits[name][..., :n][mask], **near), name
            for ours, theirs in ((x.keys, y.keys), (x.values, y.values)):
                apart = ~torch.isclose(ours[..., :n, :][held], theirs[..., :n, :][held], **near)
                # The last bit may decide over a code of a packed number.
                assert apart.sum() <= (apart.numel() // 500 if packed else 0)


def test_r1_many_tokens_at_once_are_one_after_the_other(variant, model, host):
    policy = variant.policy(host)
    wanted = asked(model, host, variant.new_tokens)
    full = {r.key: dense(model, r) for r in wanted}
    for schedule in variant.schedules(policy):
        one, many, few = Watch(), Watch(), Watch()
        single = replayed(model, wanted, policy, schedule, chunk=1, full=full, probe=one)
        whole = replayed(model, wanted, policy, schedule, full=full, probe=many)
        threes = replayed(model, wanted, policy, schedule, full=full, chunk=3, slots=2, probe=few)
        assert single == whole == threes
        for watch in (many, few):
            logits_agree(one, watch)
            events_agree(one, watch, bool(policy.method.packing()))
        for key, want in single.items():
            for other in (whole[key], threes[key]):
                assert abs(other.tokens.nll - want.tokens.nll).max() < 1e-5
                assert abs(other.tokens.kl - want.tokens.kl).max() < 1e-5
                assert (other.tokens.compressed == want.tokens.compressed).all()
            ids, prompt = wanted[key].continuation, len(wanted[key].prompt_ids)
            assert want.residency == walk(schedule, policy.footprint, prompt, len(ids) - 1, host.geometry.layers, ids)
        assert variant.idle or all(o.residency.active for o in single.values())


def test_r2_a_compressed_generation_replays_itself(variant, model, host):
    """Greedy output under a policy, given back to it: every token is the argmax again, after the same events."""
    policy = variant.policy(host)
    wanted, new = requests(prompts(5)), variant.new_tokens
    for schedule in variant.schedules(policy):
        before, after = Watch(), Watch()
        out = run(model, wanted, policy, schedule, new, sampling=Sampling(new), probe=before)
        again = [Given(r.key, r.prompt_ids, r.seed, out[r.key].output_ids) for r in wanted]
        found = replayed(model, again, policy, schedule, probe=after)
        for key, o in out.items():
            got = found[key]
            assert (got.residency, got.regions) == (o.residency, o.regions)
            assert (got.kept_min, got.kept_max) == (o.kept_min, o.kept_max)
            assert got.measures == pytest.approx(o.measures, rel=1e-4, abs=1e-6)
            # Generation may run on past the last event of the trial.
            before.events[key] = before.events.get(key, [])[: len(o.residency.events)]
            after.events.setdefault(key, [])
        logits_agree(before, after)
        events_agree(before, after, bool(policy.method.packing()))
        ranks = [r for o in found.values() for r in o.tokens.rank[0].tolist()]
        assert set(ranks) == {1}


def test_r3_a_batch_is_its_singles(variant, model, host):
    policy = variant.policy(host)
    schedule = variant.schedules(policy)[0]
    wanted = [
        Given(r.key, r.prompt_ids, r.seed, r.continuation[: len(r.continuation) - 7 * r.key])
        for r in asked(model, host, variant.new_tokens + 8)
    ]
    together = replayed(model, wanted, policy, schedule, slots=3)
    alone = {}
    for request in wanted:
        alone |= replayed(model, [request], policy, schedule)
    assert together == alone
    for key, o in alone.items():
        assert abs(o.tokens.nll - together[key].tokens.nll).max() < 1e-5
        assert (o.tokens.rank == together[key].tokens.rank).all()


def test_r4_given_tokens_are_read_under_the_masks_that_events_leave(variant, model, dense, host):
    """A forward that never evicts, by other attention code, masked per layer and head to what was kept."""
    if not variant.evicts:
        pytest.skip("what it keeps is not what was there")
    policy, watch = variant.policy(host), Watch()
    (request,) = asked(model, host, variant.new_tokens, 1)
    (out,) = replayed(model, [request], policy, variant.schedules(policy)[0], probe=watch).values()
    tokens, prompt = [*request.prompt_ids, *request.continuation[:-1]], len(request.prompt_ids)
    n, shape = len(tokens), host.geometry
    visible = torch.ones(n, n, dtype=torch.bool).tril().repeat(shape.layers, shape.kv_heads, 1, 1)
    for before, _, _, held, kept in watch.events.get(request.key, []):
        for layer in range(shape.layers):
            for head in range(shape.kv_heads):
                gone = sorted(set(held[layer][head]) - set(kept[layer][head]))
                visible[layer, head, int(before.length) :, gone] = False
    want = dense(tokens, visible)[0][prompt - 1 :]
    got = torch.stack(watch.rows[request.key])
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    nll = -want.double().log_softmax(-1)[torch.arange(len(want)), list(request.continuation)]
    assert abs(out.tokens.nll[0] - nll.numpy()).max() < 1e-4


@given(
    st.sampled_from(sorted(VARIANTS)),
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), min_size=1, max_size=4),
    st.integers(0, 30),
    st.integers(1, 40),
    st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_r5_whatever_the_lengths_and_the_budget(model, host, name, lengths, more, chunk, slots):
    variant = VARIANTS[name]
    policy = variant.policy(host)
    schedule = variant.schedules(policy, variant.budget + 20 + more)[0]
    draw = torch.Generator().manual_seed(sum(a + 31 * b for a, b in lengths))
    ids = [torch.randint(1, 97, (a + b,), generator=draw).tolist() for a, b in lengths]
    wanted = [Given(i, tuple(x[:a]), i, tuple(x[a:])) for i, (x, (a, _)) in enumerate(zip(ids, lengths))]
    single = replayed(model, wanted, policy, schedule, chunk=1, slots=slots)
    whole = replayed(model, wanted, policy, schedule, chunk=chunk, slots=slots)
    assert single == whole
    for key, o in single.items():
        assert abs(o.tokens.nll - whole[key].tokens.nll).max() < 1e-5


def test_boundaries_that_the_text_has_are_met(model, host):
    """A cadence that reads the text fires where the given text says so, not only when it must."""
    variant = VARIANTS["tri_boundaries"]
    policy = variant.policy(host)
    (schedule,) = variant.schedules(policy)
    mark = schedule.boundaries[0]
    assert mark in encode("\n") or schedule.boundaries
    (request,) = asked(model, host, 60, 1)
    ids = list(request.continuation)
    ids[1::5] = [mark] * len(ids[1::5])
    wanted = [Given(0, request.prompt_ids, 1, tuple(ids))]
    early, late = replayed(model, wanted, policy, schedule)[0], replayed(model, [request], policy, schedule)[0]
    assert early.residency.events != late.residency.events
    assert {ids[step - 1] for step, *_ in early.residency.events if step} & set(schedule.boundaries)
