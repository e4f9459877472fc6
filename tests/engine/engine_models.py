"""Tiny random models of every supported family, and prompts for them."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=None,
    pad_token_id=None,
    tie_word_embeddings=False,
)
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama3-rope": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        )
    ),
    "yarn": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
}


def build(family: str):
    """A tiny random model whose attention is sharp enough that which entries are kept matters."""
    torch.manual_seed(7)
    model = FAMILIES[family]().eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "q_proj.weight" in name or "k_proj.weight" in name or "embed" in name or "lm_head" in name:
            weight.mul_(6.0)
    return model


def prompts(count: int, low: int = 3, high: int = 14, vocab: int = 97) -> list[tuple[int, ...]]:
    g = torch.Generator().manual_seed(3)
    return [
        tuple(torch.randint(1, vocab, (int(torch.randint(low, high, (1,), generator=g)),), generator=g).tolist())
        for _ in range(count)
    ]
