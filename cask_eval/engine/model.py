"""Loading a decoder and reading off what the engine and the methods must know of it."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cask_eval.engine.attention import NAME as SLOT_ATTENTION
from cask_eval.engine.contract import Geometry
from cask_eval.errors import ModelError

# Families whose every layer is plain attention: rotary embedding of whole heads in half pairing, grouped queries,
# keyword arguments passed down to the attention function. tests/engine/test_families.py holds each of them to that.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
FAMILIES += ("arcee", "gemma", "granite", "mixtral", "olmo", "olmo2", "phi3", "qwen3_moe", "seed_oss", "starcoder2")

# Rotary kinds whose frequencies do not change with the length of the sequence.
ROPE_KINDS = ("default", "linear", "llama3", "yarn")


def check_config(config: Any) -> None:
    """Raises ModelError naming what the engine would mishandle: another architecture, sliding-window or hybrid
    layers, partial or length-dependent rotary embeddings."""
    name = getattr(config, "name_or_path", "") or config.model_type
    odd = _layers(config)
    if config.model_type not in FAMILIES:
        also = f", and has {odd}" if odd else ""
        raise ModelError(
            f"{name}: architecture {config.model_type!r} is not supported{also}; use one of {', '.join(FAMILIES)}"
        )
    if odd:
        raise ModelError(
            f"{name}: {odd}, which is not supported; every layer must attend to all it has kept (set "
            "use_sliding_window to false, or sliding_window to null, in the model's config if it was trained without)"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_KINDS:
        raise ModelError(
            f"{name}: rope_type {kind!r} changes its frequencies with length and is not supported; "
            f"use one of {', '.join(ROPE_KINDS)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"{name}: partial_rotary_factor {rope['partial_rotary_factor']} is not supported; it must be 1"
        )


def _layers(config: Any) -> str:
    """What is not full attention among a model's layers, in words; "" where nothing is."""
    text = config.get_text_config()
    for field in ("layer_types", "layers_block_type", "block_types"):
        given = getattr(text, field, None)
        if isinstance(given, (list, tuple)):
            kinds = Counter(kind for kind in given if kind not in ("full_attention", "attention"))
            return ", ".join(f"{count} of {len(given)} layers of kind {kind}" for kind, count in sorted(kinds.items()))
    if window := getattr(text, "sliding_window", None):
        return f"sliding-window attention (sliding_window is {window})"
    return ""


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> tuple[PreTrainedModel, Any]:
    """(model in eval mode on the slot attention, tokenizer) from a local folder, a local .gguf file (its weights are
    unpacked to `dtype`) or a hub id. Raises ModelError."""
    path, (source, packed) = Path(source), _parts(source)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, **packed)
        check_config(config)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=SLOT_ATTENTION,
            output_loading_info=True,
            **packed,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, struct.error) as error:
        need = _GGUF if packed and _unreadable(error) else ""
        raise ModelError(f"model {str(path)!r} cannot be loaded: {error}{need}") from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random weights
        raise ModelError(
            f"model {str(path)!r} cannot be loaded: its files lack {len(missing)} of the weights that its "
            f"config asks for, such as {missing[0]}"
        )
    return model.to(device).eval().requires_grad_(False), load_tokenizer(path, revision)


def load_config(source: str | Path) -> Any:
    """The configuration alone, as `load_tokenizer`. Raises ModelError."""
    place, packed = _parts(source)
    try:
        return AutoConfig.from_pretrained(place, **packed)
    except (OSError, ValueError, RuntimeError, ImportError, struct.error) as error:
        raise ModelError(f"the config of model {str(source)!r} cannot be read: {error}") from error


def load_tokenizer(source: str | Path, revision: str | None = None) -> Any:
    """The tokenizer alone, from a local folder, a .gguf file or a hub id: what it takes to know how long prompts are.
    Raises ModelError."""
    place, packed = _parts(source)
    try:
        return AutoTokenizer.from_pretrained(place, revision=revision, **packed)
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        need = _GGUF if packed and _unreadable(error) else ""
        raise ModelError(f"the tokenizer of model {str(source)!r} cannot be loaded: {error}{need}") from error


def _parts(source: str | Path) -> tuple[str, dict[str, str]]:
    """Where transformers looks for a model, and under which .gguf file."""
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    return str(source), {}


_GGUF = "; reading .gguf files needs: pip install 'cask-eval[gguf]'"


def _unreadable(error: Exception) -> bool:
    return isinstance(error, ImportError) or "accelerate" in str(error)


def context(config: Any) -> int:
    """The longest sequence the model was made for, in tokens; with rotary scaling, the stretched length."""
    rope = getattr(config, "rope_parameters", None) or {}
    stretched = rope.get("original_max_position_embeddings", 0) * rope.get("factor", 1.0)
    return max(config.max_position_embeddings, int(stretched))


def geometry(model: PreTrainedModel) -> Geometry:
    """The sizes and rotary frequencies of a loaded model, the latter from its own rotary module."""
    check_config(model.config)
    config, rotary = model.config, model.get_decoder().rotary_emb
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Geometry(
        layers=config.num_hidden_layers,
        query_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        inv_freq=rotary.inv_freq.detach().double().cpu(),
        scaling=float(rotary.attention_scaling),
        dtype=model.dtype,
        name=Path(str(getattr(config, "name_or_path", "") or config.model_type)).name,
    )
