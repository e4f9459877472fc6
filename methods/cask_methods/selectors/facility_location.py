"""Facility location: keep entries that stand for all the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Selection
from cask_methods.selectors.greedy import Rows, overlap, rows_of
from cask_methods.selectors.top_k import TopK

CLIENTS = ("uniform", "scores")

_LAZY_BLOCK = 16


@dataclass(frozen=True)
class FacilityLocation:
    """Greedy maximisation of F(S) = weight·τ·Σ_i w_i max_{j∈S} max(0, cos(v_i, v_j)) + η·Σ_{j∈S} s_j, where i runs
    over the candidates.

    F is submodular, and monotone once the scores are shifted to be non-negative, which changes no pick because the
    size of S is given; the greedy set then reaches 1 − 1/e of that optimum (https://doi.org/10.1007/BF01588971).
    Ties go to the lowest logical position. weight 0 is the stable top-k, bit for bit.

    weight, eta: both ≥ 0; only their ratio matters, as long as neither is 0. tau: τ is the population deviation of s
    over the candidates (``std``), 1, or their range. space: as in `Diverse`.
    clients: w_i is 1 (``uniform``), or softmax(s / τ) times the number of candidates (``scores``), 1 on average.
    path: ``exhaustive`` recomputes every gain at every pick, O(n²); ``lazy`` only those that an earlier gain, which
        bounds them, leaves in the running, and waits for the device as it goes; ``auto`` is lazy on a CPU. Both make
        the same picks. Either holds the matrix of cosines, n² numbers a row, for as many rows at a time as fit 1 GiB.
    """

    name: ClassVar[str] = "facility_location"

    weight: float = 0.5
    eta: float = 1.0
    tau: str = "std"
    space: str = "values"
    clients: str = "uniform"
    path: str = "auto"

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Selection:
        """Measures, for weight > 0: ``coverage``, the candidates' mean of max(0, cos) to what is kept, and
        ``top_k_overlap``, as in `Diverse`. Raises FloatingPointError when scores or vectors of candidates are not
        finite and weight > 0."""
        if self.weight == 0:
            return TopK().select(scores, candidates, quota, entries)
        rows = rows_of(scores, candidates, quota, entries, weight=self.weight, tau=self.tau, space=self.space)
        order, covered = greedy(rows, self.eta, self.clients, self.path)
        keep = rows.mask(order).view(scores.shape)
        covered = covered.view(scores.shape).sum((0, 2, 3), dtype=torch.float64)
        measures = {
            "coverage": (covered / candidates.sum((0, 2, 3)).clamp_min(1)).float(),
            "top_k_overlap": overlap(keep, scores, candidates, quota),
        }
        return Selection(keep, measures=measures)


def greedy(rows: Rows, eta: float, clients: str = "uniform", path: str = "auto") -> tuple[Tensor, Tensor]:
    """Picks in order, [N, steps] indices, of which those beyond a row's quota have no meaning; and how well each
    entry is covered by its row's picks, [N, n], 0 where it is no candidate."""
    count, n = rows.scores.shape
    if path == "auto":
        path = "lazy" if rows.unit.device.type == "cpu" else "exhaustive"
    order = torch.zeros(count, rows.steps, dtype=torch.long, device=rows.scores.device)
    covered = torch.zeros_like(rows.unit[..., 0])
    for at, part in rows.blocks(2 * n * n * rows.unit.element_size()):
        order[at], covered[at] = (_lazy if path == "lazy" else _exhaustive)(part, eta, clients)
    return order, covered


def _exhaustive(rows: Rows, eta: float, clients: str) -> tuple[Tensor, Tensor]:
    likeness, worth, client = _start(rows, eta, clients)
    covered = torch.zeros_like(client)
    order = torch.empty(len(worth), rows.steps, dtype=torch.long, device=worth.device)
    for step in range(rows.steps):
        pick = (worth + _gain(likeness, covered, client)).argmax(-1, keepdim=True)
        order[:, step : step + 1] = pick
        worth.scatter_(1, pick, -torch.inf)
        covered = _cover(covered, likeness, pick, step < rows.quota)
    return order, covered


def _lazy(rows: Rows, eta: float, clients: str) -> tuple[Tensor, Tensor]:
    """What a pick would add only falls as S grows: a value from earlier bounds it from above (accelerated greedy,
    https://doi.org/10.1007/BFb0006528). At each turn every row either takes its best entry, if its value is of this
    pick, or brings the entries with the best bounds up to date."""
    likeness, worth, client = _start(rows, eta, clients)
    count, n = worth.shape
    covered, block = torch.zeros_like(client), min(n, _LAZY_BLOCK)
    order = torch.zeros(count, rows.steps + 1, dtype=torch.long, device=worth.device)
    done = torch.zeros(count, dtype=torch.long, device=worth.device)
    bound = worth + _gain(likeness, covered, client)
    fresh = torch.ones_like(rows.candidates)
    while bool((done < rows.quota).any()):
        pick = bound.argmax(-1, keepdim=True)
        wanted, ready = done < rows.quota, fresh.gather(1, pick).squeeze(1)
        taken = wanted & ready
        order.scatter_(1, torch.where(taken, done, rows.steps)[:, None], pick)
        bound.scatter_(1, pick, bound.gather(1, pick).masked_fill(taken[:, None], -torch.inf))
        covered = _cover(covered, likeness, pick, taken)
        fresh &= ~taken[:, None]
        done += taken

        stale = (wanted & ~ready).nonzero()
        if len(stale):
            row = stale.squeeze(1)
            best = bound[row].topk(block).indices
            # Many ties may leave the pick itself out.
            out = (best != pick[row]).all(-1)
            best[:, -1] = torch.where(out, pick[row, 0], best[:, -1])
            some = _gain(likeness[stale, best], covered[row], client[row])
            # -inf is a pick of earlier; adding to it changes nothing.
            bound[stale, best] = torch.where(bound[stale, best].isfinite(), worth[stale, best] + some, -torch.inf)
            fresh[stale, best] = True
    return order[:, :-1], covered


def _start(rows: Rows, eta: float, clients: str) -> tuple[Tensor, Tensor, Tensor]:
    """max(0, cos) between the entries [N, n, n], each entry's own worth η·s [N, n] (−inf where it is no candidate),
    and what covering it is worth, weight·τ·w [N, n]."""
    likeness = (rows.unit @ rows.unit.transpose(1, 2)).clamp_min_(0)
    worth = (eta * rows.scores).masked_fill(~rows.candidates, -torch.inf)
    client = rows.candidates.to(worth.dtype) * rows.weight
    if clients == "scores":
        # τ = 0 says that all scores are equal.
        scores = torch.where(rows.tau > 0, rows.scores / rows.tau, 0).masked_fill(~rows.candidates, -torch.inf)
        share = scores.softmax(-1).masked_fill(~rows.candidates, 0)
        client = client * share * rows.candidates.sum(-1, keepdim=True)
    return likeness, worth, client


def _gain(likeness: Tensor, covered: Tensor, client: Tensor) -> Tensor:
    """What each of k entries would add to the coverage, [N, k]: likeness is theirs to all, [N, k, n]."""
    return ((likeness - covered[:, None]).clamp_min_(0) * client[:, None]).sum(-1)


def _cover(covered: Tensor, likeness: Tensor, pick: Tensor, taken: Tensor) -> Tensor:
    each = torch.arange(len(pick), device=pick.device)
    return torch.maximum(covered, likeness[each, pick.squeeze(1)] * taken[:, None])
