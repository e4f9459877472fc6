"""The embedded models: small, plain Hugging Face folders, and good at their task with the full cache."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer

from cask_eval.embedded import NAMES, path
from cask_eval.embedded.train import accuracy
from cask_eval.tasks import chain

#: Neither trained on nor used by the demo studies.
SEED = 77


def load(name):
    folder = path(name)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def quiet_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="chain-s"):
        path("chain-xl")


@pytest.mark.parametrize("name", NAMES)
def test_folder(name):
    folder = path(name)
    assert (folder / "model.safetensors").stat().st_size <= 5_000_000
    assert not list(folder.glob("*.pt"))
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (folder / file).is_file()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_shape(name):
    model, tokenizer = load(name)
    config = model.config
    assert config.model_type == "llama"
    assert sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.head_dim >= 16
    assert config.max_position_embeddings >= 1024
    assert config.vocab_size == len(tokenizer) <= 128
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def test_models_differ_in_shape():
    shapes = {(c.hidden_size, c.num_hidden_layers) for c in (load(name)[0].config for name in NAMES)}
    assert len(shapes) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_full_cache_accuracy(name):
    assert accuracy(*load(name), chain.problems({"seed": SEED, "count": 48})) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_cache_accuracy_on_many(name):
    assert accuracy(*load(name), chain.problems({"seed": SEED, "start": 1000, "count": 400})) >= 0.90
