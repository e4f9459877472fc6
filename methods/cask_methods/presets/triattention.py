"""TriAttention: calibrated trigonometric scores and a plain top-k."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from cask_eval.engine.contract import Entries, Geometry, Scorer
from cask_eval.engine.method import Encode, param
from cask_eval.errors import MethodError
from cask_eval.schedule import Schedule
from cask_methods.calibration import Accumulator, Statistics, load
from cask_methods.presets.evicting import Evicting
from cask_methods.scorers.triattention import TriAttentionScorer


@dataclass(frozen=True)
class TriAttention(Evicting):
    """Keeps the entries whose keys calibrated queries would attend to most (https://arxiv.org/abs/2604.04921).

    Needs calibration statistics of the model's pre-RoPE queries. Values are never used.
    """

    summary: ClassVar[str] = "Trigonometric scores from calibrated query centres"
    paper: ClassVar[str] = "https://arxiv.org/abs/2604.04921"
    deviations: ClassVar[tuple[str, ...]] = (
        "no tie-breaking noise: the published code adds U(0, 1)·1e-6 to every z-score; here ties keep the lower "
        "position",
        "a pinned prompt that fills the budget is refused unless overflow is 'first'; the published code then keeps "
        "the first b prompt tokens and drops everything generated",
        "every sequence of a batch is scored by its own keys; the published code scores the first for all",
        "the published command line defaults to mode per_head; here every layer and KV head decides for itself, as in "
        "the paper's formula",
        "mode 'global' ranks by the maximum over heads at once, which is the same set as the published union of "
        "proposals",
    )

    mode: str = param(
        "per_layer_head",
        "per_layer_head: every layer and KV head decides for itself; per_head: scores "
        "are averaged over layers and KV head g keeps the same positions in all of them; global: the maximum over "
        "layers and heads, and one set of positions for all (the published union mode).",
        source="the paper's formula; the published command line defaults to per_head",
        choices=("per_layer_head", "per_head", "global"),
    )
    normalise: bool = param(True, "z-score per query head over the competing entries.", source="published command line")
    aggregation: str = param(
        "mean", "Over the 17 distances 1, 2, 4, …, 65536.", source="published command line", choices=("mean", "max")
    )
    group: str = param("max", "Over the query heads of a KV head.", source="published code", choices=("max", "mean"))
    disable_trig: bool = param(
        False, "Ablation: score by the norm term alone, without the cosines.", source="published ablation switch"
    )
    disable_mlr: bool = param(
        False,
        "Ablation: weigh key magnitudes by m instead of m − |c|, as if no query head were concentrated.",
        source="published ablation switch",
    )
    count_prompt: bool = param(
        True,
        "Whether the trigger counts prompt entries. When it does not, events come later by the prompt's entries, but "
        "still leave b in total.",
        source="published command line (count_prompt_tokens)",
    )
    overflow: str = param(
        "refuse",
        "A pinned prompt that fills the budget: refuse it, or keep the first b entries and nothing generated.",
        source="ours: the published code does what 'first' does, silently",
        choices=("refuse", "first"),
    )

    def validate(self, preset: str) -> None:
        if self.overflow == "first" and (self.prompt != "pinned" or self.recent):
            raise MethodError(
                f"{preset}: overflow 'first' is the published behaviour, which pins the prompt and keeps no newest "
                f"entries; it needs prompt 'pinned' and recent 0, not {self.prompt!r} and {self.recent}"
            )

    def schedule(self, budget: int, encode: Encode | None = None) -> Schedule:
        options = {"count_prompt": self.count_prompt, "overflow": self.overflow}
        return self.cadence().schedule(budget, self.prompt, encode, **options)

    def scorer(self) -> Scorer:
        return TriAttentionScorer(
            self.mode, self.normalise, self.aggregation, self.group, self.disable_trig, self.disable_mlr
        )

    def protected(self, entries: Entries, target: Tensor) -> Tensor:
        """[L, R, H, n] bool: what the base protects; with overflow ``first`` no more than its first `target`."""
        kept = super().protected(entries, target)
        return kept & (kept.cumsum(-1) <= target.view(1, -1, 1, 1)) if self.overflow == "first" else kept

    @classmethod
    def calibrator(cls, geometry: Geometry) -> Accumulator:
        return Accumulator(
            geometry.layers, geometry.query_heads, geometry.head_dim, inv_freq=geometry.inv_freq, model=geometry.name
        )

    @classmethod
    def read_calibration(cls, path: str | Path) -> Statistics:
        """Statistics from our own safetensors file or from an official ``.pt`` file. Raises MethodError."""
        return load(path)
