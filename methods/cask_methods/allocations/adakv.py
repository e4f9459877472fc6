"""AdaKV: the heads of a layer share its budget by where its highest scores are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Host
from cask_eval.errors import MethodError
from cask_methods.allocations.shares import fit, largest_remainder
from cask_methods.selectors.top_k import highest

VARIANTS = ("paper", "kvpress")


@dataclass(frozen=True)
class AdaKV:
    """Head budgets from pooled scores (https://arxiv.org/abs/2407.11550). In each layer, with b_h the target less what
    head h protects, and F = Σ_h b_h:

    ``paper``: c_h of the F highest scores of all heads lie in head h; it may keep (1 − f)·c_h + f·b_h.
    ``kvpress``: the ⌊f·b_h⌋ highest scores of head h are safe; the other places go to the highest scores of all heads.

    Shares are rounded by largest remainder, ties to the lower head. A head never gets more than it has; what it cannot
    use, the others share evenly. f = 1 is the uniform allocation, bit for bit. Equal scores are pooled in the order of
    their entries (index along n, then head), so identical heads get equal budgets.

    floor: f in [0, 1], taken to six decimals. heads: KV heads of the model, 0 until `bind`.
    """

    name: ClassVar[str] = "adakv"

    floor: float = 0.2
    variant: str = "paper"
    heads: int = 0

    def __post_init__(self):
        if not 0 <= self.floor <= 1:
            raise MethodError(f"adakv: floor is {self.floor}; it must lie between 0 and 1")
        if self.variant not in VARIANTS:
            raise MethodError(f"adakv: variant is {self.variant!r}; use one of {', '.join(VARIANTS)}")

    def bind(self, host: Host) -> AdaKV:
        return replace(self, heads=host.geometry.kv_heads)

    def allocate(self, scores: Tensor, candidates: Tensor, protected: Tensor, target: Tensor) -> Tensor:
        """Quotas [L or 1, R, H]. Raises MethodError when the heads share one score, when a head protects more than the
        target, or when a layer has too few candidates."""
        if scores.shape[2] == 1 and self.heads != 1:
            raise MethodError("adakv shares a budget over heads, which needs a score for every head")
        free = target[None, :, None] - protected.sum(-1)
        there = candidates.sum(-1)
        pool = free.sum(-1)
        if bool((free < 0).any() | (pool > there.sum(-1)).any()):
            raise MethodError(
                f"adakv cannot keep its target: a layer has {int(pool.max())} places to share, a head at least "
                f"{int(free.min())} after what it protects, and a layer at least {int(there.sum(-1).min())} candidates"
            )
        part = Fraction(str(self.floor)).limit_denominator(10**6)
        if self.variant == "kvpress":
            safe = highest(scores, candidates, free * part.numerator // part.denominator)
            return safe.sum(-1) + _counts(scores, candidates & ~safe, pool - safe.sum((-1, -2)))
        mixed = (part.denominator - part.numerator) * _counts(scores, candidates, pool) + part.numerator * free
        return fit(largest_remainder(mixed, part.denominator), torch.zeros_like(there), there, pool)


def _counts(scores: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """[L, R, H]: how many of a layer's `count` [L, R] highest candidates lie in each head."""
    flat = (x.transpose(-1, -2).flatten(-2) for x in (scores, candidates))
    return highest(*flat, count).unflatten(-1, (scores.shape[-1], scores.shape[-2])).sum(-2)
