"""What presets share whose selector takes any scorer's scores, TriAttention's by default."""

from __future__ import annotations

from dataclasses import dataclass

from cask_eval.engine.contract import Scorer
from cask_eval.engine.method import param
from cask_eval.errors import MethodError
from cask_methods.presets.triattention import TriAttention
from cask_methods.scorers.by_name import NAMES, UNSCORED_WINDOW, build


@dataclass(frozen=True)
class Wrapping(TriAttention):
    """`TriAttention` with another selector and, if so chosen, another scorer with its own default parameters."""

    scorer_: str = param(
        "triattention",
        "Whose scores are selected by, with that scorer's default parameters. The parameters mode, normalise, "
        "aggregation, group, disable_trig and disable_mlr are TriAttention's.",
        source="ours: one scorer for all selectors that are compared",
        choices=NAMES,
    )

    def validate(self, preset: str) -> None:
        super().validate(preset)
        if self.scorer_ == "triattention":
            return
        if super().scorer() != TriAttention().scorer():
            raise MethodError(
                f"{preset}: scorer is {self.scorer_!r}, which takes no notice of mode, normalise, aggregation, group, "
                "disable_trig and disable_mlr; leave them out"
            )
        if self.scorer_ in UNSCORED_WINDOW and self.recent < build(self.scorer_).window:
            raise MethodError(
                f"{preset}: parameter recent is {self.recent}; with scorer {self.scorer_!r} it must be at least "
                f"{build(self.scorer_).window}, because the newest entries have no score"
            )

    def scorer(self) -> Scorer:
        return super().scorer() if self.scorer_ == "triattention" else build(self.scorer_)
