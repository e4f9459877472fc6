"""CASK's protected core: how many scratch entries it has, which, and how many of them leave room for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from cask_methods.selectors.top_k import highest

_CHUNK_ELEMENTS = 1 << 26


def core_budget(slots: Tensor, pool: Tensor, ratio: float, least: int) -> Tensor:
    """[R] int64: core entries for `pool` [R] candidates that compete for `slots` [R] ≥ 2 places (docs/DEFINITIONS.md
    §6).

    round(ratio·slots), half to even, and at least `least`; one slot is left for what is not core.
    """
    floor = torch.minimum(pool, slots - 1).clamp_max(least)
    size = (slots.double() * ratio).round().long().clamp_min(0)
    size = torch.maximum(torch.minimum(size, torch.minimum(slots, pool)), floor)
    return torch.where((pool > size) & (size == slots), torch.maximum(slots - 1, floor), size)


def votes(heads: Tensor, valid: Tensor, size: Tensor) -> Tensor:
    """[R, M] int64: by how many query heads each entry is among their best `size` [R]; ties go to the lower position.

    heads: [L, R, H, G, M] scores. valid: [R, M] bool.
    """
    step, total = max(1, _CHUNK_ELEMENTS // heads[0].numel()), torch.zeros_like(valid, dtype=torch.int64)
    for part in heads.split(step):
        competing = valid[None, :, None, None].expand_as(part)
        total += highest(part, competing, size.view(1, -1, 1, 1).expand(part.shape[:-1])).sum((0, 2, 3))
    return total


def ranking(scores: Tensor, valid: Tensor, ballots: Tensor | None = None) -> Tensor:
    """Indices [R, M] of the entries, best first: by `ballots` [R, M] where given, then by `scores` [R, M], then by
    lower position; what is not `valid` comes last."""
    order = torch.sort(scores.masked_fill(~valid, -torch.inf) + 0.0, dim=-1, descending=True, stable=True).indices
    if ballots is None:
        return order
    ballots = ballots.masked_fill(~valid, -1).gather(-1, order)
    return order.gather(-1, torch.sort(ballots, dim=-1, descending=True, stable=True).indices)


def promote(
    order: Tensor, size: Tensor, scores: Tensor, valid: Tensor, slots: Tensor, ratio: float
) -> tuple[Tensor, Tensor]:
    """The ranking and core size after near-core entries have joined: those whose score is at least `ratio` times the
    lowest of the core, best first, while one slot is left for what is not core. A core of none promotes none."""
    core = inverse(order) < size[:, None]
    lowest = scores.masked_fill(~core, torch.inf).amin(-1, keepdim=True)
    near = valid & ~core & (scores >= ratio * lowest) & (size[:, None] > 0)
    joined = (size + near.sum(-1)).minimum(slots - 1)
    by_score = ranking(scores, valid)
    standing = torch.where(near, 1, 2).masked_fill(core, 0)
    # The core in its own order, then those near it by score, then the rest.
    within = torch.where(core, inverse(order), inverse(by_score))
    return torch.sort(standing * order.shape[1] + within, dim=-1).indices, joined


def room(order: Tensor, valid: Tensor, slots: Tensor) -> Tensor:
    """[R, M + 1] bool: whether a core of the k best of `order` leaves at least as many of the `slots` [R] as the other
    candidates form runs, for k = 0 … M. Each run can become one descriptor, and no two can share one."""
    rank = inverse(order).masked_fill(~valid, -1)
    edge = rank.new_full((len(rank), 1), -1)
    left, right = torch.cat([edge, rank[:, :-1]], -1), torch.cat([rank[:, 1:], edge], -1)
    # An entry that joins after its neighbours closes a run, one that joins before them splits it.
    change = ((left > rank).long() + (right > rank).long() - 1).masked_fill(~valid, 0)
    runs = 1 + torch.cat([torch.zeros_like(edge), change.gather(-1, order).cumsum(-1)], -1)
    return runs <= slots[:, None] - torch.arange(runs.shape[1], device=runs.device)


def largest(fits: Tensor, size: Tensor) -> Tensor:
    """[R]: the largest k ≤ `size` [R] for which `fits` [R, M + 1] is True; one is, because k = 0 always fits."""
    k = torch.arange(fits.shape[1], device=fits.device)
    return torch.where(fits & (k <= size[:, None]), k, 0).amax(-1)


def inverse(order: Tensor) -> Tensor:
    """The rank of every entry under a ranking [R, M]."""
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks)
