"""Greedy merging of adjacent scratch entries within runs (CASK, cask.md §1.4 steps 4 and 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_STEPS = 1 << 20
_NEAR = 1 << 22
_NEVER = -(1 << 40)


@dataclass(frozen=True)
class Rule:
    """Which adjacent pair goes first, and which may never become one.

    Near pairs go before others, and of those the pair of the highest cosine, of equal ones the first; a pair is near
    when its spans lie at most `window` positions apart. (The published tiers are 2 for near pairs whose cosine reaches
    a threshold, 1 for other near ones, 0 for the rest. Within a tier the cosine decides, and near pairs above the
    threshold beat those below it by their cosines already: the order is the same for every threshold.)
    Cosines are compared in steps of 2^-20, so that rounding does not decide between keys that are alike.

    gate: [R], the highest sum of scores that a merged descriptor may have, inf for none. distance: the largest mean
    distance, over layers and KV heads, between two descriptors' values; 0 for none. cosine: the least one; -inf for
    none.
    """

    window: int
    gate: Tensor | None = None
    distance: float = 0.0
    cosine: float = -math.inf

    @property
    def vetoes(self) -> bool:
        return self.gate is not None or bool(self.distance) or self.cosine > -math.inf


@dataclass(frozen=True)
class Scratch:
    """M adjacent entries of R sequences. direction: [R, M, D] fp64, the keys whose cosines count. mass, score: [R, M]
    fp64. low, high: [R, M] int64, first and last position an entry stands for. values: [R, M, heads, D], needed only
    for a distance."""

    direction: Tensor
    mass: Tensor
    score: Tensor
    low: Tensor
    high: Tensor
    values: Tensor | None = None


@dataclass(frozen=True)
class Descriptors:
    """starts: [R, M] bool, the first entry of every descriptor. mass, low, high: [R, M], at the starts: the sum of
    masses and the union of spans. short: [R] int64, how many of the merges asked for were not possible."""

    starts: Tensor
    mass: Tensor
    low: Tensor
    high: Tensor
    short: Tensor


def merge_adjacent(scratch: Scratch, member: Tensor, link: Tensor, merges: Tensor, rule: Rule) -> Descriptors:
    """Merge `merges` [R] pairs in every row, one after the other, as far as there are any.

    member: [R, M] bool, the entries that take part. link: [R, M] bool, whether an entry and the next one belong to
    one run. A descriptor's direction and values are the means of its members' by mass.

    All rows advance together, one merge each: max(merges) rounds over [R, M].
    """
    rows, width = member.shape
    device = member.device
    lead = torch.arange(rows, device=device)
    # Column `width` is spare: "no neighbour", and where rows that are done write.
    sums = torch.cat(
        [scratch.direction * scratch.mass.unsqueeze(-1), scratch.mass.unsqueeze(-1), scratch.score.unsqueeze(-1)], -1
    )
    sums = _spare(sums.masked_fill(~member.unsqueeze(-1), 0), 0)
    values = None
    if rule.distance:
        values = (scratch.values * scratch.mass[..., None, None].to(scratch.values.dtype)).flatten(2)
        values = _spare(values.masked_fill(~member.unsqueeze(-1), 0), 0)
    low, high = _spare(scratch.low, 0), _spare(scratch.high, 0)
    starts = _spare(member, False)
    index = torch.arange(width + 1, device=device)
    after = torch.where(_spare(link, False), index + 1, width)
    before = torch.full((rows, width + 1), width, device=device)
    before[:, 1:width] = torch.where(link[:, :-1], index[: width - 1], width)

    def priority(left: Tensor, right: Tensor) -> Tensor:
        """Keys [R, K] of the pairs of descriptors that start at `left` and `right` [R, K]."""
        at = lead[:, None]
        a, b = sums[at, left], sums[at, right]
        u, v = a[..., :-2], b[..., :-2]
        scale = (u.square().sum(-1) * v.square().sum(-1)).sqrt()
        cosine = ((u * v).sum(-1) / torch.where(scale > 0, scale, 1) * _STEPS).round()
        near = (low[at, right] - high[at, left]) <= rule.window
        key = near.long() * _NEAR + cosine.long()
        allowed = (left < width) & (right < width) & (cosine >= rule.cosine * _STEPS)
        if rule.gate is not None:
            allowed = allowed & (a[..., -1] + b[..., -1] <= rule.gate[:, None])
        if values is not None:
            apart = values[at, left] / _mass(a) - values[at, right] / _mass(b)
            apart = torch.linalg.vector_norm(apart.unflatten(-1, scratch.values.shape[2:]), dim=-1).mean(-1)
            allowed = allowed & (apart <= rule.distance)
        return key.masked_fill(~allowed, _NEVER)

    keys = torch.full((rows, width + 1), _NEVER, device=device)
    keys[:, :width] = priority(index[:width].expand(rows, width), after[:, :width])
    left_to_do = merges.clone()
    for _ in range(int(merges.max()) if rows else 0):
        best, left = keys[:, :width].max(-1)
        live = (best > _NEVER) & (left_to_do > 0)
        if rule.vetoes and not bool(live.any()):
            break
        left = torch.where(live, left, width)
        right = after[lead, left]
        following, previous = after[lead, right], before[lead, left]
        sums[lead, left] += sums[lead, right]
        if values is not None:
            values[lead, left] += values[lead, right]
        low[lead, left] = torch.minimum(low[lead, left], low[lead, right])
        high[lead, left] = torch.maximum(high[lead, left], high[lead, right])
        starts[lead, right] = False
        keys[lead, right] = _NEVER
        after[lead, left] = following
        before[lead, following] = left
        after[:, width] = before[:, width] = width
        pairs = priority(torch.stack([left, previous], 1), torch.stack([following, left], 1))
        keys[lead, left] = pairs[:, 0]
        keys[lead, torch.where(live, previous, width)] = pairs[:, 1]
        left_to_do -= live.long()
    return Descriptors(starts[:, :width], sums[:, :width, -2], low[:, :width], high[:, :width], left_to_do)


def _mass(sums: Tensor) -> Tensor:
    """The masses in `sums` [..., D + 2], [..., 1], 1 for the spare column."""
    mass = sums[..., -2:-1].float()
    return torch.where(mass > 0, mass, 1)


def _spare(x: Tensor, fill: float) -> Tensor:
    """A copy of `x` [R, M, …] with one more column."""
    return torch.cat([x, x.new_full((x.shape[0], 1, *x.shape[2:]), fill)], 1)
