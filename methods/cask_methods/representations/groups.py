"""Groups of entries that become one, for representations that fold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """The groups of at least two entries of R sequences: g groups and m members at most. Only these are touched,
    however many entries there are.

    members, reps: [R, m], [R, g] int64 entry numbers, ascending, of members and representatives; real, exists: [R, m],
    [R, g] bool, which of those there are (others are numbers of other entries). group: [R, m] int64, the group of each
    member, -1 for none. stands: [R, n] bool, the representatives.
    """

    members: Tensor
    real: Tensor
    group: Tensor
    reps: Tensor
    exists: Tensor
    stands: Tensor

    @classmethod
    def of(cls, into: Tensor) -> Groups | None:
        """From the entry [R, n] that each becomes part of, -1 where it is gone; None when nothing is folded."""
        index = torch.arange(into.shape[1], device=into.device)
        safe = into.clamp_min(0)
        size = torch.zeros_like(into).scatter_add(-1, safe, (into >= 0).long())
        member = (into >= 0) & (size.gather(-1, safe) > 1)
        stands = member & (into == index)
        width = int(member.sum(-1).max()) if len(into) else 0
        if not width:
            return None
        members, real = numbers(member, width)
        reps, exists = numbers(stands, int(stands.sum(-1).max()))
        number = (stands.long().cumsum(-1) - 1).gather(-1, safe.gather(-1, members))
        return cls(members, real, torch.where(real, number, -1), reps, exists, stands)

    @property
    def belongs(self) -> Tensor:
        """[R, g, m] bool: which members make up a group."""
        return self.group.unsqueeze(-2) == torch.arange(self.reps.shape[1], device=self.group.device)[:, None]

    def of_members(self, x: Tensor) -> Tensor:
        """[R, m, l·H, D] fp32 of vectors [l, R, H, n, D]; 0 where there is no member."""
        return _gather(x, self.members).flatten(2, 3).masked_fill(~self.real[..., None, None], 0)

    def of_reps(self, x: Tensor) -> Tensor:
        """[R, g, l·H, D] fp32 of vectors [l, R, H, n, D]; 0 where there is no group."""
        return _gather(x, self.reps).flatten(2, 3).masked_fill(~self.exists[..., None, None], 0)

    def replaced(self, x: Tensor, new: Tensor) -> Tensor:
        """A copy of `x` [l, R, H, n, D] with `new` [R, g, l·H, D] at the representatives."""
        new = new.unflatten(2, (x.shape[0], x.shape[2])).to(x.dtype).movedim((0, 1), (1, 3))
        at = self.reps[None, :, None, :, None].expand_as(new)
        # What is no representative is written back as it was.
        new = torch.where(self.exists[None, :, None, :, None], new, x.gather(3, at))
        return x.scatter(3, at, new)


def numbers(mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The entries under `mask` [..., n] as numbers [..., width], ascending, and which of those there are."""
    at = torch.sort(~mask, dim=-1, stable=True).indices[..., :width]
    return at, mask.gather(-1, at)


def _gather(x: Tensor, at: Tensor) -> Tensor:
    """[R, k, l, H, D], entry before head, so that weights by entry are one product for all heads."""
    x = x.movedim((1, 3), (0, 1))
    x = x.gather(1, at[..., None, None, None].expand(-1, -1, *x.shape[2:]))
    return x.to(torch.promote_types(x.dtype, torch.float32))
