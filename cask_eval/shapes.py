"""Sizes of well-known models and graphics cards, so that a study's costs are known before anything is downloaded.

No torch and no pydantic here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["GPUS", "MODELS", "Gpu", "Shape", "of_config"]


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama form: its `config.json` as far as memory goes. `biases`: query, key and value have biases
    (Qwen2). `head_norms`: queries and keys are normalised by head (Qwen3)."""

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    biases: bool = False
    head_norms: bool = False

    @property
    def parameters(self) -> int:
        """Numbers in the weights: embeddings (twice where the output has its own), and per layer the four projections
        of the attention, the three of the gated MLP and the norms."""
        queries, keys = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * queries + 2 * self.hidden * keys
        attention += (queries + 2 * keys) * self.biases + 2 * self.head_dim * self.head_norms
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return (1 if self.tied else 2) * self.vocabulary * self.hidden + self.layers * layer + self.hidden


# The config.json of each repository; the tests hold their sums to the published numbers of parameters.
MODELS = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151_936, False, biases=True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": Shape(28, 3584, 18_944, 28, 4, 128, 152_064, False, biases=True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": Shape(48, 5120, 13_824, 40, 8, 128, 152_064, False, biases=True),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": Shape(32, 4096, 14_336, 32, 8, 128, 128_256, False),
    "Qwen/Qwen3-4B": Shape(36, 2560, 9728, 32, 8, 128, 151_936, True, head_norms=True),
    "Qwen/Qwen3-8B": Shape(36, 4096, 12_288, 32, 8, 128, 151_936, False, head_norms=True),
    "Qwen/Qwen3-14B": Shape(40, 5120, 17_408, 40, 8, 128, 151_936, False, head_norms=True),
    "smollm2:135m": Shape(30, 576, 1536, 9, 3, 64, 49_152, True),
}


def of_config(path: Path) -> Shape:
    """The sizes that a model's config.json states. Raises ValueError naming the field, OSError."""
    config: Any = json.loads(path.read_text(encoding="utf-8"))

    def whole(name: str, default: int | None = None) -> int:
        value = config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: {name} is {value!r}; a whole number of 1 or more is needed")
        return value

    heads = whole("num_attention_heads")
    return Shape(
        layers=whole("num_hidden_layers"),
        hidden=whole("hidden_size"),
        intermediate=whole("intermediate_size"),
        query_heads=heads,
        kv_heads=whole("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or whole("hidden_size") // heads,
        vocabulary=whole("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        biases=config.get("model_type") == "qwen2" or bool(config.get("attention_bias", False)),
        head_norms=str(config.get("model_type", "")).startswith("qwen3"),
    )


@dataclass(frozen=True)
class Gpu:
    """`memory` in bytes, `bandwidth` of that memory in bytes a second, as on the vendor's data sheet."""

    memory: int
    bandwidth: float


GPUS = {
    "a100-40gb": Gpu(40 * 10**9, 1.555e12),
    "a100-80gb": Gpu(80 * 10**9, 2.039e12),
    "h100-80gb": Gpu(80 * 10**9, 3.35e12),
    "h200-141gb": Gpu(141 * 10**9, 4.8e12),
    "l40s-48gb": Gpu(48 * 10**9, 0.864e12),
    "rtx4090-24gb": Gpu(24 * 10**9, 1.008e12),
    "rtx3090-24gb": Gpu(24 * 10**9, 0.936e12),
}
