import pytest
import torch
from cases import NAMES, Case, case, encode, geometry_of, host_of
from engine_models import build, prompts
from method_cases import statistics

from cask_eval.engine import registry
from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Host
from cask_eval.engine.model import geometry
from cask_eval.engine.queries import feed

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model():
    """A tiny random Llama with grouped queries, on the slot attention."""
    built = build("llama")
    built.set_attn_implementation(NAME)
    return built


@pytest.fixture(scope="session")
def host(model, tmp_path_factory) -> Host:
    """The tiny model as a method meets it, with statistics measured on it."""
    path = tmp_path_factory.mktemp("calibration") / "c.safetensors"
    accumulator = registry.load("triattention").calibrator(geometry(model))
    feed(model, [list(p) for p in prompts(4, 10, 30)], accumulator.add)
    accumulator.finish({}).save(path)
    return host_of(model, path)


@pytest.fixture(scope="session")
def paper(tmp_path_factory) -> Host:
    """A model that exists only as a geometry, with random statistics."""
    shape, path = geometry_of(), tmp_path_factory.mktemp("calibration") / "p.safetensors"
    statistics(shape).save(path)
    return Host(shape, str(path), encode)


@pytest.fixture(params=NAMES)
def each(request) -> Case:
    """Every registered method in turn."""
    return case(request.param)


@pytest.fixture
def compressing(each) -> Case:
    if each.idle:
        pytest.skip("never compresses")
    return each


@pytest.fixture
def dense(model):
    """forward(tokens, visible [L, H, T, T]) → (logits [T, V], queries [L, Hq, T, D]) by hand-written attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def forward(tokens, visible):
        seen = []

        def attend(module, q, k, v, attention_mask, scaling, **_):
            groups = q.shape[1] // k.shape[1]
            seen.append(q[0])
            scores = torch.einsum("hqd,hkd->hqk", q[0], k[0].repeat_interleave(groups, 0)) * scaling
            scores = scores.masked_fill(~visible[module.layer_idx].repeat_interleave(groups, 0), -torch.inf)
            return torch.einsum("hqk,hkd->qhd", scores.softmax(-1), v[0].repeat_interleave(groups, 0))[None], None

        ALL_ATTENTION_FUNCTIONS.register("dense_masks", attend)
        model.set_attn_implementation("dense_masks")
        try:
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
        finally:
            model.set_attn_implementation(NAME)
        return logits, torch.stack(seen)

    return forward
