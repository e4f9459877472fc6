"""Whole runs with all kernels give the tokens of runs without any."""

import sys
from collections import Counter
from copy import deepcopy

import pytest
import torch
from engine_models import build
from test_generate import bound, requests, run

from cask_eval.engine import decode
from cask_eval.engine.attention import NAME
from cask_eval.engine.replay import Given, replay
from cask_eval.engine.sampling import Sampling

OUTSIDE = {"delta": 4, "prompt": "outside"}
POLICIES = {
    "triattention": ("triattention", OUTSIDE, 6, {"attention", "compact", "trig_score", "top_k"}),
    "alpha": ("alpha", OUTSIDE, 6, {"attention", "compact", "trig_score", "top_k", "diverse"}),
    "cask": ("cask", {"delta": 4, "phases": False}, 28, {"attention", "compact"}),  # a log-mass bias
    "tri_merge": ("tri_merge", OUTSIDE, 6, {"attention", "compact", "trig_score"}),
    "tri_adakv": ("tri_adakv", {"delta": 4}, 28, {"attention", "compact", "trig_score"}),  # heads of unequal length
    "kivi": ("kivi", {"group_size": 4, "residual": 8}, 64, {"attention"}),  # packed keys and values
}
ENTRIES = {
    "attention": ("cask_eval.engine.kernels.attention", "attend"),
    "compact": ("cask_eval.engine.kernels.compact", "place"),
    "trig_score": ("cask_methods.kernels.trig_score", "score"),
    "top_k": ("cask_methods.kernels.top_k", "highest"),
    "diverse": ("cask_methods.kernels.diverse", "pick"),
}


@pytest.fixture(scope="module")
def model():
    built = build("llama")
    built.set_attn_implementation(NAME)
    return built


@pytest.fixture
def launched(device, monkeypatch):
    """How often each kernel ran, but for steps that were recorded."""
    import importlib

    seen = Counter()
    for name, (module, function) in ENTRIES.items():
        importlib.import_module(module)
        real = getattr(sys.modules[module], function)

        def counting(*args, name=name, real=real, **kwargs):
            seen[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(sys.modules[module], function, counting)
    return seen


def compare(model, device, name, tmp_path_factory, use, launched, count, length):
    preset, params, budget, wanted = POLICIES[name]
    policy = bound(model, preset, tmp_path_factory, **params)
    model = deepcopy(model).to(device)
    sampling = Sampling(length, 0.9, 0.9)
    use("")
    plain = run(model, requests(count), policy, budget, sampling, slots=3)
    assert not launched
    use("all")
    ours = run(model, requests(count), policy, budget, sampling, slots=3)
    assert {k: o.output_ids for k, o in ours.items()} == {k: o.output_ids for k, o in plain.items()}
    assert {k: o.residency for k, o in ours.items()} == {k: o.residency for k, o in plain.items()}
    assert wanted <= launched.keys()
    assert preset == "kivi" or any(o.residency.events for o in ours.values())


@pytest.mark.parametrize("name", ["triattention", "alpha", "tri_merge"])
def test_all_kernels_give_the_same_tokens(model, device, name, tmp_path_factory, use, launched):
    compare(model, device, name, tmp_path_factory, use, launched, 3, 14)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_all_kernels_give_the_same_tokens_in_long_runs(model, device, name, tmp_path_factory, use, launched):
    compare(model, device, name, tmp_path_factory, use, launched, 4, 28)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", POLICIES)
def test_compiled_kernels_give_the_same_tokens_in_cuda_graphs(
    model, name, tmp_path_factory, use, launched, monkeypatch
):
    monkeypatch.setattr(decode, "RECORD_AFTER", 1)
    compare(model, "cuda", name, tmp_path_factory, use, launched, 7, 26)


def test_recorded_steps_keep_the_kernel(model, device, tmp_path_factory, use, monkeypatch):
    """A tape is a list of operators, and a kernel that were none would be missing from it."""
    policy, sampling = bound(model, "recency", delta=4), Sampling(12, 0.9)
    model = deepcopy(model).to(device)
    use("attention")
    monkeypatch.setattr(decode, "RECORD_AFTER", 1)  # what is compiled first cannot be captured
    recorded = run(model, requests(3), policy, 28, sampling, slots=3)
    monkeypatch.setattr(decode, "_recordable", lambda model, policy: False)
    assert run(model, requests(3), policy, 28, sampling, slots=3) == recorded


@pytest.mark.parametrize("name", ["tri_merge", "kivi"])
def test_replays_of_one_token_at_a_time(model, device, name, tmp_path_factory, use, launched):
    """Packed keys and values may be read through columns that are no prefix; those are left to the eager path."""
    preset, params, budget, _ = POLICIES[name]
    policy = bound(model, preset, tmp_path_factory, **params)
    model = deepcopy(model).to(device)
    wanted = [Given(r.key, r.prompt_ids, r.seed, tuple(range(3 + i, 15 + i))) for i, r in enumerate(requests(3))]

    def nll(names):
        use(names)
        found = replay(model, wanted, policy, policy.schedule(budget), slots=3, chunk=1)
        return {o.key: torch.as_tensor(o.tokens.nll) for o in found}

    plain = nll("")
    ours = nll("attention")
    assert launched["attention"] or name == "kivi"
    assert all(torch.allclose(ours[k], plain[k], atol=1e-4) for k in plain)
