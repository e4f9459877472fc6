"""What is evicted is merged into its nearest kept neighbour, in the spirit of CaM
(https://openreview.net/forum?id=LCTmppB165) and D2O (https://arxiv.org/abs/2406.13035)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Needs, Selection, Trait
from cask_methods.representations.groups import numbers

_CHUNK_ELEMENTS = 1 << 26
_STEPS = 1 << 20


@dataclass(frozen=True)
class MergeOnEvict:
    """Each evicted entry goes to the kept entry of the same layer and head whose cached key has the highest cosine with
    its own, ties to the lower position, if that cosine is at least `threshold`:

        v ← Σ w v / Σ w,  w ← Σ w,

    over the kept entry and those it takes in; w is 1 for a new entry. Keys stay as they are. Cached keys are compared
    as the attention reads them, rotated: a query that finds one of two alike finds the other.

    fraction: of the evicted entries, the share that may merge, rounded half to even; those with the highest cosines.
        0 is plain eviction, bit for bit, and keeps no weights. log_mass: whether log w is added to an entry's
        attention logits, so that it weighs as much as w alike entries.
    """

    name: ClassVar[str] = "merge_on_evict"

    threshold: float = 0.8
    fraction: float = 1.0
    log_mass: bool = False

    @property
    def needs(self) -> Needs:
        if not self.fraction:
            return Needs()
        if not self.log_mass:
            return Needs(traits={"weight": Trait(start=1)}, mass="weight")
        return Needs(traits={"weight": Trait(start=1), "log_mass": Trait()}, bias="log_mass", mass="weight")

    def represent(self, entries: Entries, selection: Selection) -> tuple[Entries, Mapping[str, Tensor]]:
        """measures: merged_share, the share of evicted entries that were merged, and merged_cosine, their mean cosine
        (NaN where none was); over layers and heads.

        Raises FloatingPointError when keys or values are not finite."""
        if not self.fraction:
            return entries, {}
        keep = selection.keep
        gone = entries.resident & ~keep
        layers, rows, heads, n, dim = entries.keys.shape
        kept, lost = int(keep.sum(-1).max()), int(gone.sum(-1).max())
        if not kept or not lost:
            return entries, {}
        step = max(1, _CHUNK_ELEMENTS // (rows * heads * (kept * lost + n * dim)))
        parts = [self._layers(entries, keep, gone, kept, lost, slice(i, i + step)) for i in range(0, layers, step)]
        values, weight, share, cosine = (torch.cat(x) for x in zip(*parts, strict=True))
        traits = {**entries.traits, "weight": weight}
        if self.log_mass:
            traits["log_mass"] = weight.log()
        merged, total = share.sum((0, 2)), gone.sum((0, 2, 3))
        measures = {"merged_share": merged / total, "merged_cosine": cosine.sum((0, 2)) / merged}
        return replace(entries, values=values, traits=traits), measures

    def _layers(self, e: Entries, keep: Tensor, gone: Tensor, kept: int, lost: int, part: slice) -> tuple[Tensor, ...]:
        """Values and weights of some layers; the number of merged entries and the sum of their cosines, [l, R, H]."""
        keys, values, weight = e.keys[part], e.values[part], e.traits["weight"][part]
        stay, stays = numbers(keep[part], kept)
        go, goes = numbers(gone[part], lost)
        cosine = _unit(keys, go, goes) @ _unit(keys, stay, stays).transpose(-1, -2)
        # In steps of 2^-20 rounding does not decide between keys that are alike.
        cosine = ((cosine * _STEPS).round() / _STEPS).masked_fill(~stays.unsqueeze(-2), -torch.inf)
        best, nearest = cosine.max(-1)  # of equal maxima the first, that is the lowest position
        best = best.masked_fill(~goes, -torch.inf)
        quota = (goes.sum(-1).double() * self.fraction).round().long()
        order = torch.sort(best, dim=-1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(-1, order, torch.arange(lost, device=order.device).expand_as(order))
        merges = goes & (best >= self.threshold) & (rank < quota.unsqueeze(-1))
        takes = torch.arange(kept, device=order.device).unsqueeze(-1) == nearest.unsqueeze(-2)
        takes = (takes & merges.unsqueeze(-2)).double()  # [l, R, H, kept, lost]

        # In fp64, so that a sequence's sums do not depend on how many entries others lose.
        w = weight.gather(-1, go).masked_fill(~merges, 0).double()
        old, held = _rows(values, stay, stays), weight.gather(-1, stay).double()
        total = held + (takes @ w.unsqueeze(-1)).squeeze(-1)
        new = old * held.unsqueeze(-1) + takes @ (_rows(values, go, merges) * w.unsqueeze(-1))
        new = (new / total.unsqueeze(-1)).to(values.dtype)
        if not bool(torch.isfinite(new).all()):
            raise FloatingPointError("merging met values that are not finite")
        grew = stays & (total > held)
        at = stay.unsqueeze(-1).expand(*stay.shape, values.shape[-1])
        new = torch.where(grew.unsqueeze(-1), new, values.gather(3, at))
        values = values.scatter(3, at, new)
        weight = weight.scatter(-1, stay, total.to(weight.dtype))
        return values, weight, merges.sum(-1), torch.where(merges, best, 0).sum(-1)


def _rows(x: Tensor, at: Tensor, real: Tensor) -> Tensor:
    """[l, R, H, k, D], at least fp32, of vectors [l, R, H, n, D]; 0 where there is none."""
    x = x.gather(3, at.unsqueeze(-1).expand(*at.shape, x.shape[-1]))
    return x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~real.unsqueeze(-1), 0)


def _unit(keys: Tensor, at: Tensor, real: Tensor) -> Tensor:
    """Unit keys; a zero key resembles nothing."""
    x = _rows(keys, at, real)
    # In fp64 no finite key's square overflows or vanishes.
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    if not bool(torch.isfinite(size).all()):
        raise FloatingPointError("merging met keys that are not finite")
    size = size.to(x.dtype)
    return x / torch.where(size > 0, size, 1)
