"""A determinantal point process: keep entries whose values span much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Selection
from cask_methods.selectors.greedy import Cosines, Rows, gram_pays, mean_per_row, overlap, rows_of
from cask_methods.selectors.top_k import TopK

RIDGE = 1e-4


@dataclass(frozen=True)
class DPP:
    """Greedy maximisation of θ·Σ_{i∈S} s_i + weight·τ·log det K_S, with K_ij = ½(1 + cos(v_i, v_j)) for i ≠ j and
    K_ii = 1 + 1e-4.

    This is the mode of a determinantal point process with kernel e^{θs_i/2τ} K_ij e^{θs_j/2τ} at weight 1, in logs: no
    score is exponentiated, and neither a shift of the scores nor, with τ, their scale changes a pick. Each pick adds
    θ·s_i + weight·τ·log d_i², where d_i² is the squared distance of i to the span of S in the feature space of K;
    an incremental Cholesky factor keeps d² up to date in O(n·|S|) (https://arxiv.org/abs/1709.05135). Duplicates have
    d² ≈ 2e-4, so the ridge bounds what a duplicate costs. Ties go to the lowest logical position. weight 0 is the
    stable top-k, bit for bit; weight 1 and θ 0 the plain volume.

    theta, weight: both ≥ 0; only their ratio matters, as long as neither is 0. tau: τ is the population deviation of
    s over the candidates (``std``), 1, or their range. space: as in `Diverse`.

    The factor and the cosines are fp64 (cancellation would leave fp32 few digits of a small d²), and take 8·n·quota
    bytes a row, and 8·n² where Gram matrices pay, for as many rows at a time as fit 2 GiB.
    """

    name: ClassVar[str] = "dpp"

    weight: float = 0.5
    theta: float = 1.0
    tau: str = "std"
    space: str = "values"

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Selection:
        """Measures, for weight > 0: ``log_volume``, the mean over picks of log d², and ``top_k_overlap``, as in
        `Diverse`. Raises FloatingPointError when scores or vectors of candidates are not finite and weight > 0."""
        if self.weight == 0:
            return TopK().select(scores, candidates, quota, entries)
        rows = rows_of(
            scores,
            candidates,
            quota,
            entries,
            weight=self.weight,
            tau=self.tau,
            space=self.space,
            dtype=torch.float64,
        )
        order, volume = greedy(rows, self.theta)
        keep = rows.mask(order).view(scores.shape)
        measures = {
            "log_volume": mean_per_row(volume, rows.live(), scores.shape),
            "top_k_overlap": overlap(keep, scores, candidates, quota),
        }
        return Selection(keep, measures=measures)


def greedy(rows: Rows, theta: float) -> tuple[Tensor, Tensor]:
    """Picks in order, [N, steps] indices, and log d² of each when it was picked, [N, steps] fp64; what a row lists
    beyond its quota has no meaning."""
    count, n = rows.scores.shape
    size = rows.unit.element_size()
    gram = gram_pays(n, rows.steps, n * n * size)
    order = torch.zeros(count, rows.steps, dtype=torch.long, device=rows.scores.device)
    volume = rows.unit.new_zeros(count, rows.steps)
    for at, part in rows.blocks(n * (rows.steps + n * gram) * size):
        order[at], volume[at] = _greedy(part, theta, gram)
    return order, volume


def _greedy(rows: Rows, theta: float, gram: bool) -> tuple[Tensor, Tensor]:
    cosines = Cosines(rows.unit, gram)
    count, n = rows.scores.shape
    worth = (theta * rows.scores.double()).masked_fill(~rows.candidates, -torch.inf)
    weight = rows.weight.double()
    square = torch.full_like(worth, 1 + RIDGE)
    # factor[:, t] is row t of the Cholesky factor of K over the picks, extended to all entries.
    factor = worth.new_zeros(count, rows.steps, n)
    order = torch.empty(count, rows.steps, dtype=torch.long, device=worth.device)
    volume = worth.new_empty(count, rows.steps)
    each = torch.arange(count, device=worth.device)
    for step in range(rows.steps):
        log = square.log()
        pick = torch.addcmul(worth, weight, log).argmax(-1)
        order[:, step] = pick
        volume[:, step] = log[each, pick]
        worth[each, pick] = -torch.inf
        kernel = (1 + cosines.to(pick)) / 2
        earlier = factor[:, :step]
        projected = (earlier[each, :, pick].unsqueeze(1) @ earlier).squeeze(1)
        row = (kernel - projected) / square[each, pick].sqrt().unsqueeze(-1)
        factor[:, step] = row
        # The ridge is what is left of a vector inside the span: less is rounding.
        square = (square - row.square()).clamp_min(RIDGE)
    return order, volume
