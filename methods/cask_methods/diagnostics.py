"""What folding several entries into one costs, in the terms of the CASK paper and in those of the softmax. Pure
functions.

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
    """Σ_i a_i·d_κ(k_i, k̃) of every group and head, [R, g, X].

    keys: [R, m, X, D], pre-RoPE, of m entries in X heads. representatives: the same shape, k̃ of the group that each
    entry belongs to, pre-RoPE. shares: [R, g, m], the weights a_i of each group; they sum to 1 over its members and
    are 0 elsewhere.
    """
    return shares.to(keys.dtype) @ key_distance(keys, representatives, kappa)


def log_mass_error(logits: Tensor, group: Tensor, folded: Tensor) -> Tensor:
    """|log Σ_{i in g} e^{z_i} − z*_g| of every group and query, fp64 [R, g, Y]: by how much a query mistakes the weight
    of the group in the softmax. 0 for a group without members.

    logits: [R, m, Y], z_i of the entries as they were. group: [R, m] int64, the group of each entry, -1 for none.
    folded: [R, g, Y], z* of what stands for the group.
    """
    z, groups = logits.double(), folded.shape[1]
    at = torch.where(group < 0, groups, group).unsqueeze(-1).expand(z.shape)
    most = z.new_full((len(z), groups + 1, z.shape[2]), -torch.inf).scatter_reduce(1, at, z, "amax")
    above = (z - most.gather(1, at)).exp()
    members = group.unsqueeze(1) == torch.arange(groups, device=group.device)[:, None]
    error = ((members.double() @ above).log() + most[:, :-1] - folded.double()).abs()
    return torch.where(members.any(-1, keepdim=True), error, 0)
