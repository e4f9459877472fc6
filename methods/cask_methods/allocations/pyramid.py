"""PyramidKV: shallow layers keep more than deep ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Host
from cask_eval.errors import MethodError
from cask_methods.allocations.shares import fit, largest_remainder


@dataclass(frozen=True)
class Pyramid:
    """Layer budgets that fall linearly with depth (https://arxiv.org/abs/2406.02069).

    With target b, window W and L layers, layer l (from 0) keeps W + m + m(1 − 1/β)(1 − 2l/(L − 1)), m = b − W: from
    W + 2m − m/β down to W + m/β, rounded by largest remainder (ties to the shallower layer) to exactly L·b. They follow
    from b, W and L alone, whatever the layers hold. All heads of a layer keep equally many. β = 1 is the uniform
    allocation, bit for bit.

    Protected entries count inside a layer's budget. Two things can keep a layer from its budget: it has not yet
    gathered so many entries, and then keeps them all; or it protects more, and then keeps just those. All other
    budgets are raised or lowered by one common amount, so that the sum stays L·b exactly (`shares.fit`).

    window: W ≥ 0. beta: β ≥ 1. layers: those of the model, 0 until `bind`.
    """

    name: ClassVar[str] = "pyramid"

    window: int = 8
    beta: int = 20
    layers: int = 0

    def __post_init__(self):
        if self.beta < 1 or self.window < 0:
            raise MethodError(f"pyramid: beta is {self.beta} and window {self.window}; use at least 1 and 0")

    def bind(self, host: Host) -> Pyramid:
        return replace(self, layers=host.geometry.layers)

    def check(self, target: int) -> None:
        """Raises MethodError when the deepest layer's share (b − W)/β is below one entry."""
        if self.beta > 1 and target - self.window < self.beta:
            raise MethodError(
                f"pyramid: {target} entries a layer, less a window of {self.window}, divided by beta {self.beta} leave "
                f"the deepest layer less than one entry; raise the budget to {self.window + self.beta} or lower beta"
            )

    def budgets(self, target: Tensor, layers: int) -> Tensor:
        """[R, L] int64: what each layer keeps per head, for `target` [R]. Not checked."""
        depth = layers - 1 - 2 * torch.arange(layers, device=target.device)
        shared = (target - self.window)[:, None] * (self.beta - 1) * depth
        scale = self.beta * max(1, layers - 1)
        return largest_remainder(target[:, None] * scale + shared, scale)

    def allocate(self, scores: Tensor, candidates: Tensor, protected: Tensor, target: Tensor) -> Tensor:
        """Quotas [L, R, H or 1]. Raises MethodError when the layers share one score, when a budget is too small
        (`check`), when the layers protect more than all budgets together, or hold less."""
        layers = scores.shape[0]
        if layers == 1 and self.layers != 1:
            raise MethodError("pyramid shares a budget over layers, which needs a score for every layer")
        self.check(int(target.min()))
        held = protected.sum(-1)
        low, high = held.amax(-1).T, (held + candidates.sum(-1)).amin(-1).T
        total = target * layers
        if bool((low > high).any() | (low.sum(-1) > total).any() | (high.sum(-1) < total).any()):
            raise MethodError(
                f"pyramid cannot keep its target of up to {int(total.max())} entries per head over {layers} layers: "
                f"up to {int(low.sum(-1).max())} are protected, and as few as {int(high.sum(-1).min())} are there"
            )
        return fit(self.budgets(target, layers), low, high, total).T[..., None] - held
