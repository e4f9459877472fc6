"""Attention mass: where in a row the newest queries look, as AMS measures it (https://arxiv.org/abs/2605.23200)."""

from __future__ import annotations

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Trait
from cask_methods.attention import mean_attention, pool

CREDIT = "credit"
"""Trait: the moving average of an entry's mass."""

TRAIT = Trait()
EPSILON = 1e-12
KERNEL = 5


def evidence(entries: Entries, window: int, past: Tensor) -> Tensor:
    """[L, R, H, n] fp64: attention of the newest `window` queries, averaged over them and over a KV head's query heads,
    softmax over the whole row; pooled over 5 neighbours among the entries of `past` [L, R, H, n] bool, beyond which
    lie zeros. 0 elsewhere."""
    return pool(mean_attention(entries, window).double(), past, KERNEL, "avg")


def mass_of(evidence: Tensor, resident: Tensor) -> Tensor:
    """[L, R, H, n] fp64: the evidence, plus 1e-12 so that none is 0, divided by its sum over the resident entries."""
    return normalised((evidence + EPSILON).masked_fill(~resident, 0))


def normalised(mass: Tensor) -> Tensor:
    total = mass.sum(-1, keepdim=True)
    return mass / torch.where(total > 0, total, 1)


def credited(mass: Tensor, entries: Entries, decay: float, mix: float) -> tuple[Tensor, Tensor]:
    """The smoothed mass [L, R, H, n] fp64, and the new credit in fp32: c ← decay·c + (1 − decay)·M, then
    mix·M + (1 − mix)·c/Σc, again divided by its sum. The first event, with all credit 0, changes no mass."""
    credit = entries.traits[CREDIT].double().masked_fill(~entries.resident, 0)
    credit = decay * credit + (1 - decay) * mass
    return normalised(mix * mass + (1 - mix) * normalised(credit)), credit.float()


def shared(values: Tensor, shape: torch.Size) -> Tensor:
    """The mean of `values` [L, R, H, n] over the layers and heads that a decision of this shape is shared by."""
    for axis in (0, 2):
        if shape[axis] == 1:
            values = values.mean(axis, keepdim=True)
    return values
