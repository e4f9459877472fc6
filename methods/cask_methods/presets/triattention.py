"""TriAttention: calibrated trigonometric scores and a plain top-k."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cask_eval.engine.contract import Geometry
from cask_eval.engine.method import param
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
        "a prompt that fills the budget is refused; the published code then keeps the first b prompt tokens and "
        "drops everything generated",
        "every sequence of a batch is scored by its own keys; the published code scores the first for all",
        "with prompt 'pinned' an event fires at b + delta resident entries, prompt included (the published "
        "count_prompt_tokens)",
        "the union mode ('global') is not offered",
    )

    mode: str = param(
        "per_layer_head",
        "per_layer_head: every layer and KV head decides for itself; per_head: scores "
        "are averaged over layers and KV head g keeps the same positions in all of them.",
        source="the paper's formula; the published command line defaults to per_head",
        choices=("per_layer_head", "per_head"),
    )
    normalise: bool = param(True, "z-score per query head over the competing entries.", source="published command line")
    aggregation: str = param(
        "mean", "Over the 17 distances 1, 2, 4, …, 65536.", source="published command line", choices=("mean", "max")
    )
    group: str = param("max", "Over the query heads of a KV head.", source="published code", choices=("max", "mean"))

    def scorer(self) -> TriAttentionScorer:
        return TriAttentionScorer(self.mode, self.normalise, self.aggregation, self.group)

    @classmethod
    def calibrator(cls, geometry: Geometry) -> Accumulator:
        return Accumulator(
            geometry.layers, geometry.query_heads, geometry.head_dim, inv_freq=geometry.inv_freq, model=geometry.name
        )

    @classmethod
    def read_calibration(cls, path: str | Path) -> Statistics:
        """Statistics from our own safetensors file or from an official ``.pt`` file. Raises MethodError."""
        return load(path)
