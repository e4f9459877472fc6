"""Loading refuses what the engine would mishandle, by name."""

import json
import shutil

import pytest
from engine_models import SIZES
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from cask_eval import embedded
from cask_eval.engine.model import check_config, load_model
from cask_eval.errors import ModelError


@pytest.mark.parametrize(
    "config, message",
    [
        (GPT2Config(), "gpt2"),
        (MistralConfig(**SIZES, sliding_window=64), "sliding"),
        (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding_attention"),
        (LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "dynamic"),
    ],
)
def test_unsupported_architectures_are_named(config, message):
    with pytest.raises(ModelError, match=message):
        check_config(config)


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path / "nowhere")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(embedded.path("chain-s"), tmp_path / "model")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_weights_that_are_missing_are_not_made_up(folder):
    edit(folder, num_hidden_layers=9)
    with pytest.raises(ModelError, match="lack 54 of the weights .* model.layers.3"):
        load_model(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"),
        lambda folder: edit(folder, head_dim=64),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "tokenizer.json").unlink(),
    ],
    ids=["weights", "shape", "config", "tokenizer"],
)
def test_a_damaged_folder_is_a_clear_error(folder, damage):
    damage(folder)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)
