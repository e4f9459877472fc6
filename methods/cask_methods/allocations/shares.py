"""Whole shares of a whole budget: exact rounding, and exact fitting between bounds. Integers only, so that ties are
ties on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_remainder(numerators: Tensor, denominator: int) -> Tensor:
    """[..., K] int64: `numerators` / `denominator` rounded so that the sum along the last axis is kept (Hamilton's
    method). Of equal remainders the lower index is rounded up.

    numerators: [..., K] int64, whose sum is a multiple of `denominator`.
    """
    whole = numerators.div(denominator, rounding_mode="floor")
    rest = numerators - whole * denominator
    rank = rest.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return whole + (rank < rest.sum(-1, keepdim=True) // denominator)


def fit(shares: Tensor, low: Tensor, high: Tensor, total: Tensor) -> Tensor:
    """[..., K] int64: `shares`, all raised or lowered by one amount, cut to [`low`, `high`], and summing to `total`.

    This is the vector between the bounds, with that sum, that is nearest to `shares`: who meets a bound stays there,
    and the others share evenly what that leaves or takes. Units that do not divide go to the lower indices.
    shares, low, high: [..., K] int64. total: [...] int64, between the sums of the bounds.
    """

    def cut(by: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(shares + by, low), high)

    # The sum is piecewise linear in the amount; it bends where a share meets or leaves a bound.
    bends = torch.cat([low - shares, high - shares], -1)
    total = total[..., None]
    sums = torch.minimum(
        torch.maximum(shares[..., None, :] + bends[..., None], low[..., None, :]), high[..., None, :]
    ).sum(-1)
    start = torch.where(sums <= total, bends, bends.amin(-1, keepdim=True)).amax(-1, keepdim=True)
    free = ((shares + start >= low) & (shares + start < high)).sum(-1, keepdim=True)
    by = start + (total - cut(start).sum(-1, keepdim=True)).div(free.clamp_min(1), rounding_mode="floor")
    out = cut(by)
    free = (shares + by >= low) & (shares + by < high)
    return out + (free & (free.cumsum(-1) <= total - out.sum(-1, keepdim=True)))
