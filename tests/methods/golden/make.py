"""Writes golden scores: what kvpress makes of one prompt, layer by layer, and the tensors it made them of.

Runs in an environment of its own (README.md): kvpress pins an older transformers. Usage: python make.py [folder]
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from kvpress import ExpectedAttentionPress, KeyDiffPress, ObservedAttentionPress, SnapKVPress, TOVAPress
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

TOKENS = 36
SIZES = dict(
    vocab_size=50,
    hidden_size=64,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=1024,
    # Wide weights, so that attention is far from even.
    initializer_range=0.2,
    attn_implementation="eager",
)
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}

PRESSES = {
    "keydiff": KeyDiffPress(),
    "tova": TOVAPress(),
    "snapkv": SnapKVPress(window_size=8, kernel_size=5),
    "snapkv_unpooled": SnapKVPress(window_size=3, kernel_size=1),
    "expected_attention": ExpectedAttentionPress(),
    "expected_attention_near": ExpectedAttentionPress(n_future_positions=8, epsilon=0.01),
    "observed_attention": ObservedAttentionPress(),
}


def queries_of(module, hidden, rotation):
    """The rotated queries [1, Hq, n, D] of one attention layer."""
    q = module.q_proj(hidden).view(1, hidden.shape[1], -1, module.head_dim)
    q = (module.q_norm(q) if hasattr(module, "q_norm") else q).transpose(1, 2)
    return apply_rotary_pos_emb(q, q, *rotation)[0]


@torch.no_grad()
def golden(model) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors with a leading layer axis, and the geometry they belong to."""
    found: dict[str, list[torch.Tensor]] = {}

    def hook(module, _args, kwargs, output):
        hidden, cache = kwargs["hidden_states"], kwargs["past_key_values"].layers[module.layer_idx]
        found.setdefault("queries", []).append(queries_of(module, hidden, kwargs["position_embeddings"]))
        found.setdefault("keys", []).append(cache.keys)
        found.setdefault("values", []).append(cache.values)
        for name, press in PRESSES.items():
            seen = output[1] if name == "observed_attention" else None
            score = press.score(module, hidden, cache.keys, cache.values, seen, kwargs)
            found.setdefault(f"scores.{name}", []).append(score)

    decoder = model.model
    for layer in decoder.layers:
        for press in PRESSES.values():
            press.post_init_from_model(model)
        layer.self_attn.rotary_emb = decoder.rotary_emb
        layer.self_attn.register_forward_hook(hook, with_kwargs=True)
    ids = torch.randint(SIZES["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(1))
    model(ids, past_key_values=DynamicCache())
    tensors = {name: torch.stack(parts).float().contiguous() for name, parts in found.items()}
    tensors["inv_freq"] = decoder.rotary_emb.inv_freq.double().contiguous()
    return tensors, {"scaling": float(decoder.rotary_emb.attention_scaling)}


def main(folder: Path) -> None:
    versions = {name: version(name) for name in ("kvpress", "transformers", "torch")}
    models = {
        "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
        "qwen3_yarn": (Qwen3ForCausalLM, Qwen3Config(**SIZES, rope_parameters=YARN)),
    }
    for name, (cls, config) in models.items():
        torch.manual_seed(0)
        tensors, about = golden(cls(config).eval())
        about = json.dumps({**about, "model": name, "versions": versions}, sort_keys=True)
        save_file(tensors, folder / f"kvpress_{name}.safetensors", metadata={"about": about})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
