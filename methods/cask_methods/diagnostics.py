"""What folding several entries into one costs, in the terms of the CASK paper and in those of the softmax (cask.md
§1.7). Pure functions.

Half pairing: component f of a head vector x is the complex number x[f] + i·x[f + F], F = D/2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cask_methods.scorers.triattention import OFFSETS


def horizon(inv_freq: Tensor) -> Tensor:
    """κ_f = mean over the distances d = 1, 2, 4, …, 65536 of e^{iω_f d}, complex128 [F]."""
    angle = torch.tensor(OFFSETS, dtype=torch.float64, device=inv_freq.device)[:, None] * inv_freq.double()
    return torch.complex(angle.cos(), angle.sin()).mean(0)


def key_distance(a: Tensor, b: Tensor, kappa: Tensor) -> Tensor:
    """d_κ(a, b) = Σ_f |κ_f|·|a_f − b_f| between pre-RoPE keys [..., D]; [...]."""
    apart = a - b
    half = apart.shape[-1] // 2
    return torch.hypot(apart[..., :half], apart[..., half:]) @ kappa.abs().to(apart.dtype)


def dispersion(keys: Tensor, representatives: Tensor, shares: Tensor, kappa: Tensor) -> Tensor:
    """Σ_i a_i·d_κ(k_i, k̃) of every group, [..., g].

    keys: [..., m, D], pre-RoPE. representatives: [..., m, D], k̃ of the group that each key belongs to, pre-RoPE.
    shares: [..., g, m], the weights a_i of each group; they sum to 1 over its members and are 0 elsewhere.
    """
    return (shares.to(keys.dtype) @ key_distance(keys, representatives, kappa).unsqueeze(-1)).squeeze(-1)


def log_mass_error(logits: Tensor, group: Tensor, folded: Tensor) -> Tensor:
    """|log Σ_{i in g} e^{z_i} − z*_g| of every group, fp64 [..., g]: by how much a query mistakes the group's weight in
    the softmax. 0 for a group without members.

    logits: [..., m], z_i of the entries as they were. group: [..., m] int64, which broadcasts to them, the group of
    each, -1 for none. folded: [..., g], z* of what stands for the group.
    """
    z, groups = logits.double(), folded.shape[-1]
    at = group.expand(z.shape)
    most = z.new_full((*z.shape[:-1], groups + 1), -torch.inf)
    most = most.scatter_reduce(-1, torch.where(at < 0, groups, at), z, "amax")
    above = (z - most.gather(-1, at.clamp_min(0))).masked_fill(at < 0, -torch.inf).exp()
    members = group.unsqueeze(-2) == torch.arange(groups, device=group.device)[:, None]
    mass = (members.double() @ above.unsqueeze(-1)).squeeze(-1)
    error = (mass.log() + most[..., :-1] - folded.double()).abs()
    return torch.where(members.any(-1), error, 0)
