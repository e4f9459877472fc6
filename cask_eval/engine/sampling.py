"""Next-token choice that depends on a trial's own seed and step, never on what it was batched with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy (ties: lowest token id). stop_ids end a trial and are part of its output."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()


def uniforms(seed: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1), number i belonging to step i of the trial with this 128-bit seed.

    Philox 4×64 (Salmon et al. 2011) keyed with the seed: counter-based, so step i has the same number however many
    were drawn before. Raw 64-bit words are converted here because only they are promised to be stable.
    """
    key = np.array([seed & (2**64 - 1), seed >> 64], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=0).random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """logits [B, V], uniform [B] → token ids [B].

    Sampling inverts the cumulative distribution of the nucleus (Holtzman et al. 2020): tokens by falling
    probability, ties by id, up to and including the one that reaches top_p. A row whose logits have no finite
    maximum gives some token id without meaning; the caller must look.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, -1)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= sampling.top_p, 0.0).double()
    reached = ordered.cumsum(-1)
    pick = (reached <= uniform[:, None].double() * reached[:, -1:]).sum(-1, keepdim=True)
    last = (ordered > 0).sum(-1, keepdim=True) - 1
    # Without a finite maximum `last` is -1, which would stop a CUDA device for good.
    return ids.gather(-1, pick.minimum(last).clamp_min(0)).squeeze(-1)
