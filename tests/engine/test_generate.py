"""The engine against transformers' own generate(), against itself alone, and its refusals."""

from dataclasses import replace

import pytest
import torch
from engine_models import build, prompts

from cask_eval.engine import registry
from cask_eval.engine.contract import Host
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import MethodError, ModelError


def bound(model, preset, tmp_path_factory=None, **params):
    method = registry.load(preset).make(preset, params)
    calibration = str(statistics(model, tmp_path_factory)) if method.calibrated else None
    return method.bind(Host(geometry(model), calibration))


def statistics(model, tmp_path_factory):
    from cask_eval.engine.queries import feed

    path = tmp_path_factory.mktemp("calibration") / "c.safetensors"
    accumulator = registry.load("triattention").calibrator(geometry(model))
    feed(model, [list(p) for p in prompts(4, 10, 30)], accumulator.add)
    accumulator.finish({}).save(path)
    return path


def requests(count=7):
    return [
        Request(i, ids, (i + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128) for i, ids in enumerate(prompts(count))
    ]


def run(model, wanted, policy, budget, sampling, **kwargs):
    return {o.key: o for o in generate(model, wanted, policy, policy.schedule(budget), sampling, **kwargs)}


@pytest.mark.parametrize(
    "preset, params, budget", [("fullkv", {}, 1), ("recency", {"delta": 4}, 64), ("random_pp", {"delta": 4}, 64)]
)
def test_a_budget_beyond_the_length_equals_generate(model, plain, preset, params, budget):
    out = run(model, requests(), bound(model, preset, **params), budget, Sampling(24), slots=4)
    for request in requests():
        ids = torch.tensor([request.prompt_ids])
        want = plain.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        assert list(out[request.key].output_ids) == want
        assert out[request.key].residency.events == []


@pytest.mark.parametrize("preset", ["recency", "random_pp", "triattention", "alpha"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_equals_its_singles_whatever_the_refill_order(model, preset, temperature, tmp_path_factory):
    policy = bound(model, preset, tmp_path_factory, delta=4, prompt="outside")
    sampling = Sampling(26, temperature, 0.9)
    alone = {}
    for request in requests():
        alone |= run(model, [request], policy, 6, sampling, slots=1)
    assert all(o.residency.events for o in alone.values())
    forward = run(model, requests(), policy, 6, sampling, slots=3)
    backward = run(model, requests()[::-1], policy, 6, sampling, slots=5, poll=7)
    for key, want in alone.items():
        assert forward[key] == want
        assert backward[key] == want


def test_stop_tokens_end_a_trial_and_free_its_slot(model):
    policy = bound(model, "recency", delta=4)
    free = run(model, requests(), policy, 8, Sampling(30))
    stop = free[0].output_ids[11]
    stopped = run(model, requests(), policy, 8, Sampling(30, stop_ids=(stop,)), slots=2, poll=5)
    for key, whole in free.items():
        cut = whole.output_ids.index(stop) + 1 if stop in whole.output_ids else 30
        assert stopped[key].output_ids == whole.output_ids[:cut]
        assert stopped[key].stopped == (stop in whole.output_ids)
        assert stopped[key].residency.steps == cut - 1


def test_one_new_token_takes_no_decode_step(model):
    out = run(model, requests(2), bound(model, "recency", delta=4), 8, Sampling(1))
    assert [len(o.output_ids) for o in out.values()] == [1, 1]
    assert {o.residency.entries for o in out.values()} == {0}


def test_sampling_follows_its_seed_and_nothing_else(model):
    policy, sampling = bound(model, "fullkv"), Sampling(20, 1.0)
    first = run(model, requests(3), policy, 1, sampling)
    again = run(model, [Request("x", r.prompt_ids, r.seed) for r in requests(3)[:1]], policy, 1, sampling)
    other = run(model, [Request("x", r.prompt_ids, r.seed + 1) for r in requests(3)[:1]], policy, 1, sampling)
    assert again["x"].output_ids == first[0].output_ids
    assert other["x"].output_ids != first[0].output_ids


def test_a_prompt_that_fills_the_budget_is_refused_before_anything_runs(model):
    long = Request(0, tuple(range(1, 20)), 1)
    with pytest.raises(MethodError, match="budget 19 .* 19 are protected"):
        run(model, [requests(1)[0], long], bound(model, "random_pp", delta=4), 19, Sampling(4))


def test_nan_scores_raise(model):
    class Broken:
        def score(self, entries, candidates):
            return torch.full(entries.positions.shape, float("nan"))

    policy = bound(model, "recency", delta=4)
    broken = replace(policy, scorer=Broken())
    with pytest.raises(FloatingPointError, match="NaN"):
        run(model, requests(2), broken, 8, Sampling(30))


def test_what_befalls_a_stopped_sequence_is_not_its_fault(model):
    """Between two looks a stopped sequence runs on, into events of its own."""
    policy = bound(model, "recency", trigger="every_step")
    free = run(model, requests(1), policy, 8, Sampling(30))[0].output_ids
    stop = free[5]
    cut = free.index(stop) + 1

    class Breaks:
        def score(self, entries, candidates):
            if entries.length.max() > entries.prompt_tokens.max() + cut:
                raise RuntimeError("ran on")
            return policy.scorer.score(entries, candidates)

    broken = replace(policy, scorer=Breaks())
    outcomes = generate(model, requests(1), broken, policy.schedule(8), Sampling(30, stop_ids=(stop,)), poll=20)
    assert next(outcomes).output_ids == free[:cut]
    with pytest.raises(RuntimeError, match="ran on"):
        next(outcomes)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_broken_logits_raise(value, temperature):
    model = build("llama")
    model.set_attn_implementation("cask_slots")
    # Positive features times an infinite weight: one infinite logit and no NaN.
    model.get_decoder().norm.register_forward_hook(lambda module, inputs, output: output.abs() + 1)
    model.lm_head.weight[5].fill_(float(value))
    with pytest.raises(FloatingPointError, match="infinite or NaN logits"):
        run(model, requests(1), bound(model, "fullkv"), 1, Sampling(3, temperature))


def test_another_attention_is_refused(plain):
    with pytest.raises(ModelError, match="eager"):
        run(plain, requests(1), bound(plain, "fullkv"), 1, Sampling(3))


def test_bfloat16_runs_and_counts_half_the_bytes(family):
    model = build(family).bfloat16()
    model.set_attn_implementation("cask_slots")
    out = run(model, requests(3), bound(model, "recency", delta=4), 8, Sampling(20))
    account = out[0].residency
    assert account.entry_bytes == 2 * geometry(model).head_dim * 2
    assert account.payload_bytes == account.entries * account.entry_bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("preset", ["recency", "triattention", "alpha"])
def test_cuda_gives_the_tokens_of_the_cpu(model, preset, tmp_path_factory):
    policy = bound(model, preset, tmp_path_factory, delta=4, prompt="outside")
    cpu = run(model, requests(), policy, 6, Sampling(26), slots=3)
    device = build_on_cuda(model)
    gpu = run(device, requests(), policy, 6, Sampling(26), slots=3)
    assert {k: o.output_ids for k, o in cpu.items()} == {k: o.output_ids for k, o in gpu.items()}


def build_on_cuda(model):
    import copy

    return copy.deepcopy(model).cuda()
