"""A determinantal point process over TriAttention's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.presets.triattention import TriAttention
from cask_methods.presets.wrapping import Wrapping
from cask_methods.selectors.dpp import DPP as Selector
from cask_methods.selectors.greedy import SPACES, TAUS


@dataclass(frozen=True)
class DPP(Wrapping):
    """Greedy selection of a set with high scores whose values span much (greedy inference as in
    https://arxiv.org/abs/1709.05135). Beside α it tells whether volume serves better than the nearest kept value."""

    summary: ClassVar[str] = "Scores plus the log-volume of the kept values, greedily"
    paper: ClassVar[str] = "https://arxiv.org/abs/1709.05135"
    reference: ClassVar[str | None] = "triattention"
    deviations: ClassVar[tuple[str, ...]] = (
        "a mechanism of our own design after determinantal point processes, not a published cache method",
        *TriAttention.deviations,
    )

    weight: float = param(
        0.5, "Weight of the log-volume, in units of tau.", source="ours: the same default as alpha's λ", low=0, null=0.0
    )
    theta: float = param(1.0, "Weight of the scores; 0 is volume alone.", source="ours: scores as they are", low=0)
    tau: str = param(
        "std",
        "Unit of the weight: the scores' population deviation over the competing entries, 1, or their range.",
        source="ours, as in alpha",
        choices=TAUS,
    )
    space: str = param(
        "values",
        "Where resemblance is measured: values, values less their mean, or cached keys.",
        source="ours, as in alpha",
        choices=SPACES,
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if not self.weight and not self.theta:
            raise MethodError(f"{preset}: weight and theta are both 0, which prefers no set to another")

    def selector(self) -> Selector:
        return Selector(self.weight, self.theta, self.tau, self.space)
