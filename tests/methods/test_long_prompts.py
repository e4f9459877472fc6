"""Prompts many times longer than the budget: both TriAttention baselines (cask.md §1.8 item 5, §7 item 11) and CASK, on
a tiny random Llama. What an event keeps is watched as it happens."""

import pytest
import torch
from cask_methods.presets.cask import Cask
from cask_methods.presets.triattention import TriAttention
from engine_models import build, prompts

from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Host
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry
from cask_eval.engine.queries import feed
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import MethodError
from cask_eval.stages import regime, stages

PROMPT, BUDGET, DELTA, NEW = 300, 32, 8, 48


@pytest.fixture(scope="module")
def model():
    built = build("llama")
    built.set_attn_implementation(NAME)
    return built


@pytest.fixture(scope="module")
def host(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "c.safetensors"
    accumulator = TriAttention.calibrator(geometry(model))
    feed(model, [list(p) for p in prompts(2, 100, 200)], accumulator.add)
    accumulator.finish({}).save(path)
    return Host(geometry(model), str(path))


class Watch:
    """Of every event: step, and the positions [L, R, H, n] that it kept, −1 elsewhere."""

    def __init__(self):
        self.events = []

    def logits(self, requests, logits):
        pass

    def event(self, requests, before, after):
        kept = torch.where(after.keep, before.positions, -1)
        self.events.append((int(before.length[0]) - PROMPT, kept))


def run(model, host, method):
    policy = method.bind(host)
    schedule = policy.schedule(BUDGET)
    watch = Watch()
    (prompt,) = prompts(1, PROMPT, PROMPT + 1)
    sampling = Sampling(NEW, 0.0, 1.0, ())
    (out,) = generate(model, [Request("r", prompt, 1)], policy, schedule, sampling, probe=watch)
    assert len(out.output_ids) == NEW
    found = stages(schedule, PROMPT, [out.output_ids])
    assert len(watch.events) == len(out.residency.events)
    return out, watch.events, found, regime(found, out.residency.active)


def positions(kept):
    return kept[kept >= 0]


def test_the_prompt_competes(model, host):
    """Prefill-compressing TriAttention: the prompt is cut to b before the first decode step, by score and not by
    place, and what is generated competes with it."""
    out, events, found, label = run(model, host, TriAttention(delta=DELTA, prompt="compete"))
    assert events[0][0] == 0 and out.residency.peak_entries == out.residency.heads * (BUDGET + DELTA)
    first = events[0][1]
    assert ((first >= 0).sum(-1) == BUDGET).all() and int(positions(first).max()) >= BUDGET
    later = positions(events[-1][1])
    assert (later >= PROMPT).any() and (later < PROMPT).any()
    assert (label, found.exhausted, found.decode_events) == ("active", 0, len(events))


def test_the_prompt_is_pinned(model, host):
    """The published baseline: the prompt's first b entries, and nothing else, after every event."""
    out, events, found, label = run(model, host, TriAttention(delta=DELTA, overflow="first"))
    assert events[0][0] == 1 and out.residency.peak_entries == out.residency.heads * (PROMPT + 1)
    for _, kept in events:
        layers, _, heads, _ = kept.shape
        assert torch.equal(positions(kept).view(layers, heads, BUDGET), torch.arange(BUDGET).expand(layers, heads, -1))
    assert (label, found.exhausted) == ("prefix_budget_exhausted", len(events))


def test_without_a_rule_for_it_a_prompt_that_fills_the_budget_is_refused(model, host):
    with pytest.raises(MethodError, match=f"{PROMPT}"):
        run(model, host, TriAttention(delta=DELTA))


def test_cask_evicts_the_prompt_and_then_compresses_what_is_generated(model, host):
    out, events, found, label = run(model, host, Cask(delta=DELTA, recent=4, phases=False))
    assert events[0][0] == 1 and label == "active" and found.exhausted == 0 and found.guards == {}
    assert found.prefix_events >= 1 and found.decode_events >= 2
    last = positions(events[-1][1])
    prompt_left = int((events[-1][1] < PROMPT).logical_and(events[-1][1] >= 0).sum(-1).max())
    assert 0 < prompt_left < BUDGET and (last >= PROMPT).any()
    assert prompt_left == BUDGET - 4 - 2  # P* leaves the newest and two slots (cask.md §1.3)


def test_cask_that_does_not_count_the_prompt_exhausts_its_budget(model, host):
    """The published boundary probes (cask.md §1.5): no stage for the prompt; the last b entries, all prompt by name."""
    method = Cask(delta=DELTA, recent=4, phases=False, count_prompt=False)
    out, events, found, label = run(model, host, method)
    assert label == "prefix_budget_exhausted" and found.prefix_events == found.decode_events == 0
    step, kept = events[0]
    assert torch.equal(positions(kept[0, 0, 0]), torch.arange(PROMPT + step - BUDGET, PROMPT + step))
