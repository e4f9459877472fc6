"""What `cask_eval.engine.model.FAMILIES` promises of every family that is not already in `engine_models`."""

import pytest
import torch
import transformers
from cask_methods.rotary import unrotate
from engine_models import SIZES, prompts
from transformers import DynamicCache

from cask_eval.engine import decode, registry
from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Host
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import FAMILIES, check_config, geometry
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import ModelError

STEPS = 12
PLAIN = {name: value for name, value in SIZES.items() if name != "tie_word_embeddings"}
OTHERS = {
    "arcee": ("Arcee", {}),
    "gemma": ("Gemma", {"head_dim": 12}),
    "granite": ("Granite", {"attention_multiplier": 0.1}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "olmo": ("Olmo", {"clip_qkv": 0.2}),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 12, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "seed_oss": ("SeedOss", {"head_dim": 12}),
    "starcoder2": ("Starcoder2", {"sliding_window": None}),
}


@pytest.fixture(autouse=True)
def recorded_at_once(monkeypatch):
    """Steps of these models, too, must come out of a recording as they went in."""
    monkeypatch.setattr(decode, "RECORD_AFTER", 1)


@pytest.fixture(params=OTHERS)
def other(request):
    name, own = OTHERS[request.param]
    torch.manual_seed(7)
    config = getattr(transformers, f"{name}Config")(**PLAIN, **own)
    assert config.model_type == request.param
    return getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)


def test_every_family_is_tested():
    assert {*OTHERS, "llama", "mistral", "qwen2", "qwen3"} == set(FAMILIES)


def test_the_full_cache_gives_what_transformers_gives_alone_and_together(other):
    asked = prompts(3)
    other.set_attn_implementation("eager")
    wanted = [
        other.generate(torch.tensor([p]), max_new_tokens=STEPS, do_sample=False, pad_token_id=0)[0, len(p) :].tolist()
        for p in asked
    ]
    other.set_attn_implementation(NAME)
    policy = registry.load("fullkv")().bind(Host(geometry(other)))
    requests = [Request(i, p, 0) for i, p in enumerate(asked)]
    for slots in (1, 3):
        run = generate(other, requests, policy, policy.schedule(1), Sampling(STEPS, stop_ids=()), slots=slots)
        found = {o.key: list(o.output_ids) for o in run}
        assert [found[i] for i in range(3)] == wanted


def test_keys_are_rotated_as_methods_expect(other):
    """The first layer sees one token alike at every position, but for the rotation."""
    other.set_attn_implementation("eager")
    cache, count = DynamicCache(), 9
    other(torch.tensor([[5] * count]), past_key_values=cache)
    keys = cache.layers[0].keys[0].double()
    plain = unrotate(keys, torch.arange(count)[None].expand(len(keys), -1), geometry(other))
    assert (plain - plain[:, :1]).abs().max() < 1e-5 * plain.abs().max()
    assert (keys - keys[:, :1]).abs().max() > 1e-2 * keys.abs().max()


@pytest.mark.parametrize(
    "kind, own, message",
    [
        ("Gemma3Text", {}, r"'gemma3_text' is not supported, and has \d+ of \d+ layers of kind sliding_attention; use"),
        ("Jamba", {}, "'jamba' is not supported, and has 28 of 32 layers of kind linear_attention; use"),
        ("Qwen3Next", {}, "'qwen3_next' is not supported, and has .* layers of kind linear_attention; use"),
        ("Cohere", {}, "'cohere' is not supported; use one of llama"),
        ("Phi3", {"sliding_window": 2047}, r"sliding-window attention \(sliding_window is 2047\), which is not supported"),
        ("Mixtral", {"sliding_window": 64}, "sliding_window is 64"),
        ("Phi3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_what_a_model_has_instead_is_named(kind, own, message):
    with pytest.raises(ModelError, match=message):
        check_config(getattr(transformers, f"{kind}Config")(**own))
