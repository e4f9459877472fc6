"""How many entries each segment keeps: whole numbers with an exact sum.

rooms, caps, weights: [N, S]; totals: [N] int64. Batched, no loops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cask_methods.selectors.top_k import highest


def level(rooms: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fill all `rooms` [N, S] int64 to one height: the greatest t such that Σ min(room, t) ≤ total. Returns
    min(room, t), what is left of the totals [N], and where there is room above t [N, S] bool. It is where t whole
    turns of giving 1 to each in a circle would end; what is left does not suffice for another turn."""
    ordered = rooms.sort(-1).values
    size = rooms.shape[-1]
    # With the k smallest full and the others as high as the k-th, this much is in.
    above = torch.arange(size - 1, -1, -1, device=rooms.device)
    filled = ordered.cumsum(-1)
    fits = filled + above * ordered <= totals[:, None]
    full = fits.sum(-1, keepdim=True)
    spent = torch.nn.functional.pad(filled, (1, 0)).gather(-1, full)
    height = (totals[:, None] - spent) // (size - full).clamp_min(1)
    height = torch.where(full < size, height, ordered[:, -1:])
    taken = rooms.minimum(height)
    return taken, totals - taken.sum(-1), rooms > height


def in_turn(rooms: Tensor, totals: Tensor) -> Tensor:
    """[N, S] int64: `totals` given out 1 at a time, in a circle from the first segment, to those that have room.
    Less where the rooms do not suffice."""
    taken, left, open_ = level(rooms, totals)
    return taken + (open_ & (open_.cumsum(-1) <= left[:, None]))


def lowered(floors: Tensor, weights: Tensor, totals: Tensor) -> Tensor:
    """[N, S] int64: the floors, where they fit into `totals`. Elsewhere all are lowered to one height, and what is
    left goes to the heaviest of those that had more, 1 each, of equals to the first: with more floors than there is
    to give, 1 to the heaviest. The sum is then the total."""
    taken, left, open_ = level(floors, totals)
    return taken + highest(weights, open_, left)


def apportion(weights: Tensor, caps: Tensor, totals: Tensor) -> Tensor:
    """[N, S] int64: `totals` shared out in proportion to `weights` (fp64, positive where there is a cap), at most
    `caps` each: x_i = min(cap_i, h·w_i) with the h that makes Σ x = total, rounded down, and the rest to the largest
    remainders, of equals to the first. Σ caps must be at least the total."""
    weights = weights.masked_fill(caps == 0, 0)
    ratio = torch.where(caps > 0, caps / weights, 0)
    ratio, order = ratio.sort(dim=-1, stable=True)
    ordered_caps, ordered_weights = caps.gather(-1, order), weights.gather(-1, order)
    # Height with the k smallest ratios capped, k = 0, 1, …; summed from the far end, small weights keep their digits.
    spent = ordered_caps.cumsum(-1) - ordered_caps
    behind = ordered_weights.flip(-1).cumsum(-1).flip(-1)
    heights = (totals[:, None] - spent) / behind
    full = (behind == 0) | (heights * ordered_weights >= ordered_caps)
    full = full.long().cumprod(-1).bool()
    first = full.sum(-1, keepdim=True).clamp_max(full.shape[-1] - 1)
    capped = torch.zeros_like(full).scatter_(-1, order, full)
    share = torch.where(capped, 0, heights.gather(-1, first) * weights)
    whole = torch.where(capped, caps, share.floor().long().minimum(caps))
    left = totals - whole.sum(-1)
    # In steps of 2^-30, so that rounding decides no tie.
    remainder = ((share - share.floor()) * 2.0**30).round()
    return whole + highest(remainder, ~capped & (whole < caps), left)
