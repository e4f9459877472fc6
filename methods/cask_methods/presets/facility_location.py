"""Facility location over TriAttention's scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.presets.triattention import TriAttention
from cask_methods.presets.wrapping import Wrapping
from cask_methods.selectors.facility_location import CLIENTS
from cask_methods.selectors.facility_location import FacilityLocation as Selector
from cask_methods.selectors.greedy import SPACES, TAUS


@dataclass(frozen=True)
class FacilityLocation(Wrapping):
    """Greedy selection of a set with high scores whose values resemble those of all competing entries (guarantee of
    the greedy rule: https://doi.org/10.1007/BF01588971). Where α and the determinant avoid resemblance among what is
    kept, this seeks resemblance to what is not."""

    summary: ClassVar[str] = "Scores plus how well the kept values stand for all, greedily"
    paper: ClassVar[str] = "https://doi.org/10.1007/BF01588971"
    reference: ClassVar[str | None] = "triattention"
    deviations: ClassVar[tuple[str, ...]] = (
        "a mechanism of our own design after facility location, not a published cache method",
        *TriAttention.deviations,
    )

    weight: float = param(
        0.5,
        "Weight of the coverage, in units of tau per entry.",
        source="ours: the same default as alpha's λ; an entry's own coverage is then what α's penalty takes off",
        low=0,
        null=0.0,
    )
    eta: float = param(1.0, "Weight of the scores; 0 is coverage alone.", source="ours: scores as they are", low=0)
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
    clients: str = param(
        "uniform",
        "What covering an entry is worth: the same for all, or by softmax of the scores in units of tau.",
        source="ours",
        choices=CLIENTS,
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if not self.weight and not self.eta:
            raise MethodError(f"{preset}: weight and eta are both 0, which prefers no set to another")

    def selector(self) -> Selector:
        return Selector(self.weight, self.eta, self.tau, self.space, self.clients)
