"""α's selector: greedy picks that pay for resembling what is already kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine import kernels
from cask_eval.engine.contract import Entries, Selection
from cask_methods.selectors.greedy import (
    SPACES,
    TAUS,
    Cosines,
    Rows,
    gram_pays,
    mean_per_row,
    overlap,
    rows_of,
    spread,
    unit_vectors,
)
from cask_methods.selectors.top_k import TopK

__all__ = ["PENALTIES", "SPACES", "TAUS", "Diverse", "greedy", "spread", "unit_vectors"]

PENALTIES = ("max", "mean", "sum")

_LAZY_BLOCK = 16
_LAZY_ENTRIES = 512


@dataclass(frozen=True)
class Diverse:
    """Set-conditioned greedy selection: quota times, keep argmax over the rest of s_i − λ·τ·m_i(S).

    m_i(S) = max over j already picked of max(0, cos(v_i, v_j)), 0 before the first pick; zero vectors resemble
    nothing. Ties go to the lowest logical position. λ = 0 is the stable top-k, bit for bit, because the penalty is
    scaled and the score is not. m only grows and the order of picks matters: the rule is maximal marginal relevance
    (https://doi.org/10.1145/290941.291025), not the maximisation of a submodular set function.

    lambda_: λ ≥ 0. tau: τ is the population deviation of s over the candidates (``std``), 1, or their range.
    space: where cosines are taken: ``values``, ``values_centred`` (less the candidates' mean), or ``keys`` (rotated,
        as cached). When a decision is shared over layers or heads, the unit vectors of all of them are concatenated,
        so that the cosine is the mean cosine.
    penalty: m is the ``max``, the ``mean`` or the ``sum`` of max(0, cos) over S.
    seed_protected: whether S starts with the protected entries. Off, because the penalty would otherwise reach
        everything that resembles the prompt.
    path: how, not what; all make the same picks up to rounding of the cosines. ``gram`` computes Gram matrices (for as
        many rows at a time as fit 2 GiB), ``incremental`` one product per pick, ``lazy`` only the cosines of entries
        that may be next. ``auto`` takes Gram matrices for at most 16 entries per pick (on a CPU, below 512 entries);
        beyond that ``lazy`` on a CPU, and ``incremental`` elsewhere, because the lazy loop waits for the device.
    """

    name: ClassVar[str] = "diverse"

    lambda_: float = 0.5
    tau: str = "std"
    space: str = "values"
    penalty: str = "max"
    seed_protected: bool = False
    path: str = "auto"

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Selection:
        """Measures, for λ > 0: ``redundancy``, the mean m of the picks when they were picked, and ``top_k_overlap``,
        the share of them that the plain top-k picks too. Raises FloatingPointError when scores or vectors of
        candidates are not finite and λ > 0."""
        if self.lambda_ == 0:
            return TopK().select(scores, candidates, quota, entries)
        rows = rows_of(
            scores,
            candidates,
            quota,
            entries,
            weight=self.lambda_,
            tau=self.tau,
            space=self.space,
            seeded=self.seed_protected,
        )
        order, burden = greedy(rows, self.path, self.penalty)
        keep = rows.mask(order).view(scores.shape)
        measures = {
            "redundancy": mean_per_row(burden, rows.live(), scores.shape),
            "top_k_overlap": overlap(keep, scores, candidates, quota),
        }
        return Selection(keep, measures=measures)


def greedy(rows: Rows, path: str = "auto", penalty: str = "max") -> tuple[Tensor, Tensor]:
    """Picks in order, [N, steps] indices, and m of each when it was picked, [N, steps]; what a row lists beyond its
    quota has no meaning."""
    count, n = rows.scores.shape
    row_bytes = n * n * rows.unit.element_size()
    if path == "auto":
        on_cpu = rows.unit.device.type == "cpu"
        if gram_pays(n, rows.steps, row_bytes) and not (on_cpu and n >= _LAZY_ENTRIES):
            path = "gram"
        else:
            path = "lazy" if on_cpu else "incremental"
    solve = _lazy if path == "lazy" else _one_by_one
    order = torch.zeros(count, rows.steps, dtype=torch.long, device=rows.scores.device)
    burden = torch.zeros(count, rows.steps, dtype=rows.scores.dtype, device=rows.scores.device)
    for at, part in rows.blocks(row_bytes if path == "gram" or rows.seeds is not None else 0):
        order[at], burden[at] = solve(part, penalty, path == "gram")
    return order, burden


def _one_by_one(rows: Rows, penalty: str, gram: bool) -> tuple[Tensor, Tensor]:
    cosines = Cosines(rows.unit, gram)
    left = rows.scores.masked_fill(~rows.candidates, -torch.inf)
    total, size = _seeded(rows, penalty)
    if kernels.use("diverse", left):
        from cask_methods.kernels import diverse  # with Triton

        if diverse.takes(left, rows.unit):
            given = left, total, size, rows.weight, rows.quota, rows.steps, rows.unit
            return diverse.pick(*given, cosines.gram, penalty)
    order = torch.empty(len(left), rows.steps, dtype=torch.long, device=left.device)
    burden = left.new_empty(len(left), rows.steps)
    for step in range(rows.steps):
        m = total / (size + step).clamp_min(1) if penalty == "mean" else total
        # Of equal maxima argmax returns the first, that is the lowest position.
        pick = torch.addcmul(left, m, rows.weight, value=-1).argmax(-1, keepdim=True)
        order[:, step : step + 1] = pick
        burden[:, step : step + 1] = m.gather(1, pick)
        left.scatter_(1, pick, -torch.inf)
        total = _add(total, cosines.to(pick.squeeze(1)), penalty)
    return order, burden


def _lazy(rows: Rows, penalty: str, _gram: bool) -> tuple[Tensor, Tensor]:
    """The total of max(0, cos) over S, or the maximum, never falls as S grows. One that misses the latest picks thus
    bounds the gain from above, and an entry whose total is up to date and whose gain no bound exceeds is the next
    pick. Each row keeps a block of entries up to date, and takes the best bounds as its new block when the next pick
    may lie outside."""
    count, n = rows.scores.shape
    left = rows.scores.masked_fill(~rows.candidates, -torch.inf)
    start, size = _seeded(rows, penalty)
    total = start.clone()
    unit, block = rows.unit, min(n, _LAZY_BLOCK)
    each = torch.arange(count, device=left.device)[:, None]
    # The last column takes what rows without a pick would write.
    order = torch.zeros(count, rows.steps + 1, dtype=torch.long, device=left.device)
    burden = left.new_zeros(count, rows.steps + 1)
    picked = unit.new_zeros(count, rows.steps + 1, unit.shape[-1])
    done = torch.zeros(count, dtype=torch.long, device=left.device)
    index = torch.zeros(count, block, dtype=torch.long, device=left.device)
    vectors = unit.new_zeros(count, block, unit.shape[-1])
    fresh = torch.zeros_like(rows.candidates)
    while bool((done < rows.quota).any()):
        m = total / (size + done[:, None]).clamp_min(1) if penalty == "mean" else total
        bound = torch.addcmul(left, m, rows.weight, value=-1)
        pick = bound.argmax(-1, keepdim=True)
        wanted, ready = done < rows.quota, fresh.gather(1, pick).squeeze(1)

        taken = wanted & ready
        column = torch.where(taken, done, rows.steps)[:, None]
        order.scatter_(1, column, pick)
        burden.scatter_(1, column, m.gather(1, pick))
        left.scatter_(1, pick, left.gather(1, pick).masked_fill(taken[:, None], -torch.inf))
        vector = unit[each, pick] * taken[:, None, None]
        picked.scatter_(1, column[..., None].expand_as(vector), vector)
        likeness = (vectors @ vector.transpose(1, 2)).squeeze(-1)
        total.scatter_(1, index, _add(total.gather(1, index), likeness, penalty))
        done += taken

        stale = (wanted & ~ready).nonzero()
        if len(stale):
            row = stale.squeeze(1)
            best = bound[row].topk(block).indices
            # Many ties may leave the pick itself out.
            out = (best != pick[row]).all(-1)
            best[:, -1] = torch.where(out, pick[row, 0], best[:, -1])
            index[row], vectors[row] = best, unit[stale, best]
            fresh[row] = False
            fresh[stale, best] = True
            likeness = vectors[row] @ picked[row, : int(done.max())].transpose(1, 2)
            total[stale, best] = _add(start[stale, best], likeness, penalty)
    return order[:, :-1], burden[:, :-1]


def _add(total: Tensor, likeness: Tensor, penalty: str) -> Tensor:
    """`total` [N, k] after picks whose cosines are `likeness` [N, k] or, for several picks at once, [N, k, picks]."""
    if likeness.ndim > total.ndim:
        likeness = likeness.clamp_min(0)
        likeness = torch.nn.functional.pad(likeness, (0, 1))
        likeness = likeness.amax(-1) if penalty == "max" else likeness.sum(-1)
    return torch.maximum(total, likeness) if penalty == "max" else total + likeness.clamp_min(0)


def _seeded(rows: Rows, penalty: str) -> tuple[Tensor, Tensor]:
    """The totals [N, n] before the first pick, and the sizes [N, 1] of S."""
    start = torch.zeros_like(rows.scores)
    if rows.seeds is None:
        return start, torch.zeros(len(start), 1, dtype=torch.long, device=start.device)
    others = (rows.unit * rows.seeds.unsqueeze(-1)).transpose(1, 2)
    return _add(start, rows.unit @ others, penalty), rows.seeds.sum(-1, keepdim=True)
