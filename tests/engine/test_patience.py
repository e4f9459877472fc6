"""Sequences whose events are due wait for each other, and nothing that a trial says or holds shows it."""

from dataclasses import replace

import pytest
import torch
from engine_models import build
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import bound, build_on_cuda, requests, run

from cask_eval.engine import decode
from cask_eval.engine.attention import NAME
from cask_eval.engine.decode import generate
from cask_eval.engine.sampling import Sampling

# One of every kind of state beside keys and values: none, remembered queries, uneven heads, a bias, positions of its
# own, events that the text decides, events by position.
PRESETS = {
    "recency": {},
    "random_pp": {},
    "snapkv": {},
    "adakv": {},
    "alpha": {},
    "cask": {"phases": False},
    "tri_merge": {},
    "tri_boundaries": {"earliest": 3},
    "ams_faithful": {"recent": 8},
    "recency_pp": {},
}


@pytest.fixture(scope="module")
def model():
    built = build("llama")
    built.set_attn_implementation(NAME)
    return built


@pytest.fixture
def groups(monkeypatch):
    """How many sequences each compression event of a decode step had."""
    seen, inner = [], decode._Run._compress
    monkeypatch.setattr(decode._Run, "_compress", lambda self, due: seen.append(len(due)) or inner(self, due))
    return seen


@pytest.mark.parametrize("recorded_after", [0, 1 << 30])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_trial_does_not_depend_on_patience(model, preset, recorded_after, tmp_path_factory, groups, monkeypatch):
    monkeypatch.setattr(decode, "RECORD_AFTER", recorded_after)
    policy = bound(model, preset, tmp_path_factory, delta=8, **PRESETS[preset])
    sampling = Sampling(45, 0.9, 0.95, stop_ids=(5, 11))
    schedule = policy.schedule(28)
    if schedule.trigger == "boundary":
        schedule = replace(schedule, boundaries=tuple(range(3, 40)))

    def run(slots, **kwargs):
        made = generate(model, requests(9), policy, schedule, sampling, slots=slots, **kwargs)
        return {o.key: o for o in made}

    want = run(5, patience=0)
    assert sum(len(o.residency.events) for o in want.values()) >= 9
    alone = len(groups)
    for patience, slots, poll in ((1, 5, 1), (3, 5, 1), (7, 4, 6), (40, 9, 3)):
        groups.clear()
        assert run(slots, poll=poll, patience=patience) == want
    assert len(groups) < alone


@settings(max_examples=15, deadline=None)
@given(
    patience=st.integers(0, 12),
    slots=st.integers(1, 9),
    poll=st.integers(1, 9),
    new=st.integers(1, 40),
    order=st.permutations(range(9)),
)
def test_whatever_the_patience_and_the_company(model, patience, slots, poll, new, order):
    policy, sampling = bound(model, "snapkv", delta=6), Sampling(new, 0.9, stop_ids=(5, 11))
    some = requests(9)
    want = run(model, some, policy, 26, sampling, slots=1, patience=0)
    got = run(model, [some[i] for i in order], policy, 26, sampling, slots=slots, poll=poll, patience=patience)
    assert got == want


class Before:
    """What every event was shown, by request and length."""

    def __init__(self):
        self.seen = {}

    def logits(self, requests, logits):
        pass

    def event(self, requests, before, after):
        for i, request in enumerate(requests):
            n = int((before.positions[:, i] >= 0).sum(-1).max())
            self.seen[request.key, int(before.length[i])] = (
                before.positions[:, i, :, :n],
                before.query_positions[i],
                before.queries[:, i],
                before.keys[:, i, :, :n],
                before.tokens[i, : int(before.length[i])],
            )


def test_an_event_is_shown_the_same_after_waiting(model):
    policy, watched = bound(model, "snapkv", delta=6), []
    for patience in (0, 5):
        watched.append(Before())
        run(model, requests(9), policy, 26, Sampling(30), slots=5, patience=patience, probe=watched[-1])
    want, got = (w.seen for w in watched)
    assert want.keys() == got.keys() and len(want) > 9
    for key in want:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(want[key], got[key], strict=True))


def test_an_event_after_the_last_token_belongs_to_the_trial_though_it_waited(model):
    policy = bound(model, "snapkv", delta=6)
    free, tried = run(model, requests(9), policy, 26, Sampling(40, 3.0), slots=1), 0
    for key, o in free.items():
        for step, _, _ in o.residency.events:
            stop = o.output_ids[step]
            if o.output_ids.index(stop) < step:
                continue
            tried += 1
            sampling = Sampling(40, 3.0, stop_ids=(stop,))
            want = run(model, requests(9), policy, 26, sampling, slots=9, patience=0)
            assert want[key].residency.events[-1][0] == want[key].residency.steps == step
            assert run(model, requests(9), policy, 26, sampling, slots=9, patience=5, poll=8) == want
    assert tried >= 5


def test_those_that_had_an_event_together_stay_together(model, groups):
    """Prompts of many lengths, so that without patience there is an event of few at almost every step."""
    policy, sampling, many = bound(model, "recency", delta=16), Sampling(160), requests(16)
    run(model, many, policy, 24, sampling, slots=16, patience=0)
    alone = list(groups)
    groups.clear()
    run(model, many, policy, 24, sampling, slots=16, patience=15)
    assert sum(groups) == sum(alone)
    assert groups.count(16) > len(groups) / 2
    assert len(groups) * 2 <= len(alone)


def test_what_an_event_does_to_those_that_wait_is_not_the_fault_of_those_that_are_done(model):
    """Without patience the same outcomes come before the error."""
    policy = bound(model, "recency", delta=6)
    free = run(model, requests(5), policy, 26, Sampling(40))
    stop = free[2].output_ids[9]
    sampling = Sampling(40, stop_ids=(stop,))

    class Breaks:
        def score(self, entries, candidates):
            if bool((entries.length - entries.prompt_tokens > 20).any()):
                raise RuntimeError("late")
            return policy.scorer.score(entries, candidates)

    broken, found = replace(policy, scorer=Breaks()), {}
    for patience in (0, 4):
        out = []
        with pytest.raises(RuntimeError, match="late"):
            out.extend(generate(model, requests(5), broken, policy.schedule(26), sampling, patience=patience, poll=7))
        found[patience] = out
    for out in found.values():
        assert all(o.output_ids == free[o.key].output_ids[: len(o.output_ids)] and o.stopped for o in out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_patience_on_a_gpu(model):
    model = build_on_cuda(model)
    policy, sampling = bound(model, "snapkv", delta=8), Sampling(60, stop_ids=(5, 11))
    want = run(model, requests(9), policy, 28, sampling, slots=5, patience=0)
    assert run(model, requests(9), policy, 28, sampling, slots=5, patience=7) == want
