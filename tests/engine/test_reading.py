"""Prompts read in chunks leave what prompts read at once leave, and sequences in flight go on meanwhile."""

import pytest
import torch
from engine_models import build, prompts
from test_generate import bound, build_on_cuda, run

from cask_eval.engine import decode, flight, reading
from cask_eval.engine.attention import NAME
from cask_eval.engine.decode import Request
from cask_eval.engine.sampling import Sampling
from cask_eval.engine.usage import Usage

# Nothing beside the keys, remembered queries, an observer, packed entries, prompts compressed at once, uneven heads.
PRESETS = {
    "fullkv": ({}, 1),
    "snapkv": ({"delta": 6, "prompt": "compete"}, 16),
    "h2o": ({"delta": 6, "prompt": "compete"}, 16),
    "kivi": ({"bits": 4, "group_size": 4, "residual": 8}, 1),
    "triattention": ({"delta": 6, "prompt": "outside"}, 16),
    "adakv": ({"delta": 6, "prompt": "compete"}, 24),
}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request):
    built = build(request.param)
    built.set_attn_implementation(NAME)
    return built


def asked(count=8):
    return [Request(i, ids, i) for i, ids in enumerate(prompts(count, 3, 60))]


class Entered:
    """What the first event or step of every request was shown, with the logits of its prompt."""

    def __init__(self):
        self.first, self.events = {}, {}

    def logits(self, requests, logits):
        for request, row in zip(requests, logits):
            self.first.setdefault(request.key, row.clone())

    def event(self, requests, before, after):
        for i, request in enumerate(requests):
            n = int(before.resident[:, i].sum(-1).max())
            parts = [before.keys[:, i, :, :n], before.values[:, i, :, :n], before.positions[:, i, :, :n]]
            parts += [t[:, i, :, :n] for _, t in sorted(before.traits.items())]
            if before.queries is not None:
                there = before.query_positions[i] >= 0
                parts += [before.queries[:, i, :, there], before.query_positions[i, there]]
            self.events.setdefault(request.key, [p.clone() for p in parts])


@pytest.mark.parametrize("chunk", [1, 7, 16])
@pytest.mark.parametrize("preset", PRESETS)
def test_chunks_leave_what_one_forward_leaves(model, preset, chunk, tmp_path_factory, monkeypatch):
    params, budget = PRESETS[preset]
    policy, sampling = bound(model, preset, tmp_path_factory, **params), Sampling(12, 0.8, stop_ids=(5,))
    whole, pieces = Entered(), Entered()
    want = run(model, asked(), policy, budget, sampling, slots=3, probe=whole)
    monkeypatch.setattr(reading, "CHUNK", chunk)
    assert run(model, asked(), policy, budget, sampling, slots=3, probe=pieces) == want
    for key, row in whole.first.items():
        assert torch.allclose(row, pieces.first[key], atol=1e-4)
    assert whole.events.keys() == pieces.events.keys()
    for key, parts in whole.events.items():
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(parts, pieces.events[key], strict=True))


def test_a_prompt_is_cut_alike_whatever_it_is_read_with(model, monkeypatch):
    """To the last bit, so that no company decides a near-tie."""
    monkeypatch.setattr(reading, "CHUNK", 16)
    cuts = []
    inner = reading.Reading.step

    def step(self):
        cuts.append((self.start % 16, self.left))
        inner(self)

    monkeypatch.setattr(reading.Reading, "step", step)
    run(model, asked(), bound(model, "fullkv"), 1, Sampling(3), slots=8)
    assert {start for start, _ in cuts} == {0} and len(cuts) == 4


def test_sequences_in_flight_go_on_between_chunks(model, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 4)
    policy = bound(model, "fullkv")
    (stop,) = run(model, [Request(0, (1, 2, 3), 1)], policy, 1, Sampling(1))[0].output_ids
    others = [Request(i, (i, i + 1), 3) for i in range(10, 60)]
    goes_on = next(k for k, o in run(model, others, policy, 1, Sampling(30)).items() if stop not in o.output_ids)
    did = []
    for letter, owner in (("d", decode._Run), ("r", reading.Reading)):
        inner = owner.step
        monkeypatch.setattr(owner, "step", lambda self, i=inner, a=letter: did.append(a) or i(self))
    # Two short prompts in one forward, one of which is done at once; beside the other, ten chunks of a long one.
    asked = [Request("short", (1, 2, 3), 1), others[goes_on - 10], Request("long", tuple(range(1, 40)), 2)]
    run(model, asked, policy, 1, Sampling(30, stop_ids=(stop,)), slots=2)
    assert "".join(did).startswith("rd" + 10 * "rd")


def test_a_long_prompt_is_computed_without_the_padding_of_short_ones(model, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 8)
    usage = Usage()
    many = [Request(i, (1, 2, 3), i) for i in range(7)] + [Request("long", tuple(range(1, 65)), 9)]
    run(model, many, bound(model, "fullkv"), 1, Sampling(2), slots=8, usage=usage)
    assert usage.prompt_tokens == 7 * 3 + 64
    assert usage.prompt_places == 8 * 8 + 7 * 8


def test_waves_hold_no_more_tokens_than_they_may(model, monkeypatch):
    monkeypatch.setattr(flight, "READ_TOKENS", 70)
    sizes = []
    inner = reading.Reading.__init__

    def make(self, model, geometry, wave, cache):
        sizes.append([len(r.prompt_ids) for r in wave])
        inner(self, model, geometry, wave, cache)

    monkeypatch.setattr(reading.Reading, "__init__", make)
    out = run(model, asked(), bound(model, "fullkv"), 1, Sampling(3), slots=8)
    assert len(out) == 8
    assert all(len(s) == 1 or max(s) * len(s) <= 70 for s in sizes)
    assert all(s == sorted(s, reverse=True) for s in sizes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_chunks_on_a_gpu(model, monkeypatch):
    model = build_on_cuda(model)
    policy, sampling = bound(model, "snapkv", delta=6, prompt="compete"), Sampling(20)
    want = run(model, asked(), policy, 16, sampling, slots=3)
    monkeypatch.setattr(reading, "CHUNK", 7)
    assert run(model, asked(), policy, 16, sampling, slots=3) == want
