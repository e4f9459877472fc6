"""α's selector: greedy picks that pay for resembling what is already kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Selection
from cask_methods.selectors.top_k import TopK

SPACES = ("values", "values_centred", "keys")
TAUS = ("std", "1", "range")

_GRAM_BYTES = 1 << 31
_GRAM_ENTRIES_PER_PICK = 16


@dataclass(frozen=True)
class Diverse:
    """Set-conditioned greedy selection: quota times, keep argmax over the rest of s_i − λ·τ·m_i(S).

    m_i(S) = max(0, max over j already picked of cos(v_i, v_j)), 0 before the first pick; zero vectors resemble
    nothing. Ties go to the lowest logical position. λ = 0 is the stable top-k, bit for bit, because the penalty is
    scaled and the score is not. m only grows and the order of picks matters: the rule is maximal marginal relevance
    (https://doi.org/10.1145/290941.291025), not the maximisation of a submodular set function.

    lambda_: λ ≥ 0. tau: τ is the population deviation of s over the candidates (``std``), 1, or their range.
    space: where cosines are taken: ``values``, ``values_centred`` (less the candidates' mean), or ``keys`` (rotated,
        as cached). When a decision is shared over layers or heads, the unit vectors of all of them are concatenated,
        so that the cosine is the mean cosine.
    path: ``auto`` computes Gram matrices (for as many rows at a time as fit 2 GiB) when a row has at most 16 entries
        per pick, about where one CPU thread breaks even, and otherwise one product per pick (``gram`` and
        ``incremental`` force either). Both make the same picks up to rounding of the cosines.

    Protected entries do not seed S: the penalty would otherwise reach everything that resembles the prompt.
    """

    name: ClassVar[str] = "diverse"

    lambda_: float = 0.5
    tau: str = "std"
    space: str = "values"
    path: str = "auto"

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Selection:
        """Raises FloatingPointError when scores or
        vectors of candidates are not finite and λ > 0."""
        if self.lambda_ == 0:
            return TopK().select(scores, candidates, quota, entries)
        shape, n = scores.shape, scores.shape[-1]
        unit = unit_vectors(
            entries.keys if self.space == "keys" else entries.values, candidates, centred=self.space == "values_centred"
        )
        weight = self.lambda_ * spread(scores, candidates, self.tau)
        if not bool(torch.isfinite(weight).all()):
            raise FloatingPointError("diverse selection met scores that are not finite")
        quota = quota.expand(shape[:-1]).reshape(-1)
        order = greedy(
            scores.reshape(-1, n),
            candidates.reshape(-1, n),
            weight.reshape(-1, 1),
            unit.reshape(-1, n, unit.shape[-1]),
            quota,
            self.path,
        )
        # Picks beyond a row's quota go to a spare column.
        live = torch.arange(order.shape[1], device=order.device) < quota[:, None]
        mask = torch.zeros(order.shape[0], n + 1, dtype=torch.bool, device=order.device)
        mask.scatter_(1, torch.where(live, order, n), True)
        return Selection(mask[:, :n].reshape(shape))


def spread(scores: Tensor, candidates: Tensor, tau: str) -> Tensor:
    """τ per row, [..., 1] in the dtype of `scores`: population deviation (``std``) or ``range`` over the candidates,
    or 1. Moments are summed in fp64, so that padding does not move them."""
    if tau == "1":
        return scores.new_ones(*scores.shape[:-1], 1)
    if tau == "range":
        top = scores.masked_fill(~candidates, -torch.inf).amax(-1, keepdim=True)
        low = scores.masked_fill(~candidates, torch.inf).amin(-1, keepdim=True)
        return (top - low).masked_fill(~candidates.any(-1, keepdim=True), 0)
    count = candidates.sum(-1, keepdim=True).clamp_min(1)
    mean = scores.masked_fill(~candidates, 0).sum(-1, keepdim=True, dtype=torch.float64) / count
    deviation = (scores - mean).masked_fill(~candidates, 0)
    return (deviation.square().sum(-1, keepdim=True) / count).sqrt().to(scores.dtype)


def unit_vectors(vectors: Tensor, candidates: Tensor, *, centred: bool = False) -> Tensor:
    """[L or 1, R, H or 1, n, E] fp32 unit vectors of `vectors` [L, R, H, n, D]; zero where the vector is zero or
    `candidates` (whose shape says which axes are shared) is False. Shared axes are concatenated into E. Raises
    FloatingPointError when a candidate's vector holds NaN or infinity."""
    mask = candidates.unsqueeze(-1)
    x = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).masked_fill(~mask, 0)
    if centred:
        mean = x.sum(-2, keepdim=True, dtype=torch.float64) / mask.sum(-2, keepdim=True).clamp_min(1)
        x = (x - mean.to(x.dtype)).masked_fill(~mask, 0)
    # In fp64 no finite vector's square overflows or vanishes.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    if not bool(torch.isfinite(norm).all()):
        raise FloatingPointError("diverse selection met keys or values that are not finite")
    norm = norm.to(x.dtype)
    x = x / torch.where(norm > 0, norm, 1)
    for axis in (0, 2):
        shared = x.shape[axis]
        if candidates.shape[axis] == 1 and shared > 1:
            x = x.movedim(axis, -2).flatten(-2).unsqueeze(axis) / shared**0.5
    return x


def greedy(scores: Tensor, candidates: Tensor, weight: Tensor, unit: Tensor, quota: Tensor, path: str) -> Tensor:
    """Picks in order, [N, max quota] indices; what a row lists beyond its quota has no meaning.

    scores, candidates: [N, n]. weight: [N, 1], λ·τ. unit: [N, n, E]. quota: [N].
    """
    rows, n = scores.shape
    steps = int(quota.max()) if rows else 0
    fit = _GRAM_BYTES // (n * n * unit.element_size())
    if path == "auto":
        path = "gram" if n <= _GRAM_ENTRIES_PER_PICK * steps and fit else "incremental"
    if path == "gram" and rows > max(1, fit):
        order = torch.zeros(rows, steps, dtype=torch.long, device=scores.device)
        for start in range(0, rows, max(1, fit)):
            part = slice(start, start + max(1, fit))
            got = greedy(scores[part], candidates[part], weight[part], unit[part], quota[part], path)
            order[part, : got.shape[1]] = got
        return order
    gram = (unit @ unit.transpose(1, 2)).view(rows * n, n) if path == "gram" else None
    left = scores.masked_fill(~candidates, -torch.inf)
    nearest = torch.zeros_like(scores)
    base = torch.arange(rows, device=scores.device) * n
    flat = unit.reshape(rows * n, -1)
    order = torch.empty(rows, steps, dtype=torch.long, device=scores.device)
    for step in range(steps):
        # Of equal maxima argmax returns the first, that is the lowest position.
        pick = torch.addcmul(left, nearest, weight, value=-1).argmax(-1)
        order[:, step] = pick
        left.scatter_(1, pick[:, None], -torch.inf)
        pick = pick + base
        if gram is not None:
            likeness = gram.index_select(0, pick)
        else:
            likeness = (unit @ flat.index_select(0, pick).unsqueeze(-1)).squeeze(-1)
        nearest = torch.maximum(nearest, likeness)
    return order
