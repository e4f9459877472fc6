"""Loading refuses what the engine would mishandle, by name."""

import pytest
from engine_models import SIZES
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from cask_eval.engine.model import check_config, load_model
from cask_eval.errors import ModelError


@pytest.mark.parametrize("config, message", [
    (GPT2Config(), "gpt2"),
    (MistralConfig(**SIZES, sliding_window=64), "sliding"),
    (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding_attention"),
    (LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "dynamic"),
])
def test_unsupported_architectures_are_named(config, message):
    with pytest.raises(ModelError, match=message):
        check_config(config)


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path / "nowhere")
