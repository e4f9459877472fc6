"""R-KV's key redundancy (https://arxiv.org/abs/2505.24133): how much an entry resembles the others of its head."""

from __future__ import annotations

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries

_ALIKE = 0.5
_CHUNK_ELEMENTS = 1 << 25


def redundancy(entries: Entries, candidates: Tensor) -> Tensor:
    """D [L, R, H, n] fp32: a softmax over the resident entries of a layer, sequence and head, of which only the
    `candidates` are reported (0 elsewhere).

    Take the cosines of all pairs of keys (as cached, that is rotated), row i speaking for entry i. Zero the diagonal;
    in each row zero also the newest column above 0.5, or the first column where there is none: the newest of
    several lookalikes is spared. An entry's redundancy is the softmax of its column's mean over the rows. Zero keys
    resemble nothing. NaN or infinity in a resident key makes its row of the result NaN.

    A pair of equal keys without further lookalikes ties: each spares the other. Costs O(n² D) per layer, sequence and
    head, in blocks that hold about 2^25 cosines.
    """
    shape, n = entries.positions.shape, entries.positions.shape[-1]
    keys = entries.keys.reshape(-1, n, entries.keys.shape[-1])
    resident = entries.resident.reshape(-1, n)
    step = max(1, _CHUNK_ELEMENTS // (n * n))
    means = torch.cat([_column_means(k, m) for k, m in zip(keys.split(step), resident.split(step))])
    # A head without entries has no softmax; the mask turns its NaN into 0.
    share = means.masked_fill(~resident, -torch.inf).softmax(-1)
    return share.reshape(shape).masked_fill(~(candidates & entries.resident), 0)


def _column_means(keys: Tensor, resident: Tensor) -> Tensor:
    """[N, n] fp32 of keys [N, n, D]."""
    x = keys.float().masked_fill(~resident.unsqueeze(-1), 0)
    # In fp64 no finite vector's square overflows or vanishes.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64).to(x.dtype)
    unit = x / torch.where(norm == 0, 1, norm)
    cosine = unit @ unit.transpose(-1, -2)
    cosine.diagonal(dim1=-2, dim2=-1).zero_()
    index = torch.arange(cosine.shape[-1], dtype=torch.int32, device=cosine.device)
    newest = torch.where(cosine > _ALIKE, index, 0).amax(-1, keepdim=True)
    cosine.scatter_(-1, newest.long(), 0)
    # Summed in fp64, so that padding does not move the sum.
    total = cosine.sum(-2, dtype=torch.float64)
    return (total / resident.sum(-1, keepdim=True).clamp_min(1)).float()
