"""Segments of a row: stretches of entries that follow one another, marked by the entries that open them.

starts: [N, n] bool, True where a segment begins; length: [N] int64, entries a row; what lies beyond them is
never marked. All is batched; only the merges loop, once per segment that comes out of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cut(mass: Tensor, length: Tensor, step: float) -> Tensor:
    """Starts where the running sum of `mass` [N, n] fp64, whose rows sum to 1, reaches step, 2·step, … below 1: the
    entry that reaches one opens the next segment. One that reaches several opens one."""
    count, n = mass.shape
    marks = torch.arange(1, most(step), dtype=torch.float64, device=mass.device) * step
    # Sums that fall short by rounding alone reach their mark.
    at = torch.searchsorted(mass.cumsum(-1), (marks - 1e-12).expand(count, -1).contiguous())
    starts = torch.zeros(count, n + 1, dtype=torch.bool, device=mass.device).scatter_(1, at, True)[:, :n]
    starts[:, :1] = True
    return starts & _inside(starts, length)


def merge(starts: Tensor, length: Tensor, shortest: int, *, most: int, close: bool) -> Tensor:
    """Segments shorter than `shortest` take in those behind them until they are not. close: a last one that is still
    short joins the one before it. most: a bound on the segments of a row; costs as many turns over all rows, or
    n / shortest if that is less."""
    if shortest <= 1:
        return starts
    count, n = starts.shape
    here = torch.arange(n, device=starts.device)
    # The first start at or behind each place; n where there is none.
    ahead = torch.where(starts, here, n).flip(-1).cummin(-1).values.flip(-1)
    ahead = torch.nn.functional.pad(ahead, (0, 1), value=n)
    out = torch.zeros(count, n + 1, dtype=torch.bool, device=starts.device)
    at = torch.zeros(count, 1, dtype=torch.long, device=starts.device)
    for _ in range(max(1, min(most, math.ceil(n / shortest)))):
        out.scatter_(1, at, True)
        at = ahead.gather(1, (at + shortest).clamp_max(n))
    out = out[:, :n] & _inside(starts, length)
    if close:
        last = torch.where(out, here, 0).amax(-1, keepdim=True)
        short = length[:, None] - last < shortest
        out = out & ~((here == last) & short & (last > 0))
    return out


def split(starts: Tensor, length: Tensor, longest: int, *, even: bool) -> Tensor:
    """Segments longer than `longest` fall into pieces. even: as few as possible, whose lengths differ by at most 1;
    otherwise every piece but the last is `longest` long."""
    place, size = _places(starts, length)
    if even:
        pieces = (size + longest - 1) // longest
        inner = place * pieces // size != (place - 1).clamp_min(0) * pieces // size
    else:
        inner = place % longest == 0
    return (starts | inner) & _inside(starts, length)


def equal(length: Tensor, n: int, step: float, shortest: int, longest: int) -> Tensor:
    """Starts [N, n] of segments whose lengths differ by at most 1: 1 / step of them, as far as `shortest` and
    `longest` allow."""
    wanted = torch.full_like(length, most(step))
    wanted = wanted.minimum(length // shortest).maximum((length + longest - 1) // longest).clamp_min(1)[:, None]
    here = torch.arange(n, device=length.device)[None]
    size = length[:, None].clamp_min(1)
    starts = here * wanted // size != (here - 1) * wanted // size
    return starts & _inside(starts, length)


def most(step: float) -> int:
    """How many segments `cut` makes at most: one more than there are multiples of the step below 1."""
    # A step that divides 1 up to rounding has none at 1 - 1e-16.
    return max(1, math.ceil(1 / step - 1e-9))


def number(starts: Tensor) -> Tensor:
    """[N, n] int64: which segment each entry lies in, from 0; entries beyond a row's length count to its last."""
    return (starts.cumsum(-1) - 1).clamp_min(0)


def total(numbers: Tensor, values: Tensor, width: int) -> Tensor:
    """[N, width]: `values` [N, n] summed over each segment."""
    return torch.zeros(len(values), width, dtype=values.dtype, device=values.device).scatter_add_(1, numbers, values)


def _inside(starts: Tensor, length: Tensor) -> Tensor:
    return torch.arange(starts.shape[-1], device=starts.device) < length[:, None]


def _places(starts: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Each entry's place in its segment, from 0, and the segment's length, at least 1; [N, n]."""
    n = starts.shape[-1]
    numbers, here = number(starts), torch.arange(n, device=starts.device)
    inside = _inside(starts, length)
    size = total(numbers, inside.long(), n).gather(1, numbers).clamp_min(1)
    begin = torch.where(starts, here, 0).cummax(-1).values
    return here - begin, size
