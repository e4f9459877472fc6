"""CASK: TriAttention's scores, prompt eviction in a stage of its own, and folding around a protected core."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from cask_eval.engine.contract import Allocation, Geometry, Host, Representation, Scorer, Selector
from cask_eval.engine.method import Encode, Method, Policy, param
from cask_eval.errors import MethodError
from cask_eval.schedule import Schedule
from cask_methods.allocations.uniform import Uniform
from cask_methods.cadences.periodic import Periodic
from cask_methods.cadences.slack import Slack
from cask_methods.calibration import Accumulator, Statistics
from cask_methods.presets.triattention import TriAttention
from cask_methods.representations.evict import Evict
from cask_methods.representations.fold import Fold
from cask_methods.scorers.staged import Staged
from cask_methods.scorers.triattention import TriAttentionScorer
from cask_methods.selectors.two_stage import TwoStage

_BOTH = "published default, in the method's class and everywhere else"
_RUN_ONE = "published command line (cli run-one)"


@dataclass(frozen=True)
class Cask(Method):
    """CASK (https://github.com/Skyline-23/CASK): one decision for all layers and KV heads. Prompt entries are evicted
    as far as generated ones need room; those are folded into descriptors around a protected core (`TwoStage`, `Fold`).

    Needs calibration statistics of the model's pre-RoPE queries, and its tokenizer unless `phases` is false. The
    published repository runs under two sets of defaults, those of its command line and those of its replay script;
    where they differ, both are named.
    """

    summary: ClassVar[str] = "Two-stage prompt eviction, then folding of generated entries around a protected core"
    paper: ClassVar[str] = "https://github.com/Skyline-23/CASK"
    deviations: ClassVar[tuple[str, ...]] = (
        "demoted core entries are counted and reported; the published code demotes silently, and core 'hard' does not",
        "the core is demoted only until all descriptors fit; where value_distance or similarity_role 'forbid' keeps "
        "them from fitting even without a core, it stays whole and the descriptors of lowest mass are evicted; the "
        "published code gives up all of it",
        "spans are remembered only where neighbours can lie apart (see local_window); the published code always does",
        "operator 'mean' is a weighted mean; in the published code it adds values up without dividing",
        "values are divided by the sum of their weights; the published max(sum, 1), which shrinks values of low "
        "support, is normaliser 'published'",
        "descriptors keep one member's key (or a mean of un-rotated keys), as in the published code; the paper folds "
        "keys and values alike",
        "no tie-breaking noise: ties keep the lower position, representatives the later",
        "the value veto compares values themselves, not their images under the output projection, which a method "
        "does not see",
        "the published similarity threshold ranks neighbours that cosines rank already, and so decides nothing; that "
        "is similarity_role 'rank', and 'forbid' gives it a meaning",
        "cosines of neighbours are compared in steps of 2^-20; a descriptor's is that of its members' mean by mass",
        "prompt and generated entries are standardised apart, without the newest entries",
        "every sequence of a batch is decided for itself; the published code runs one at a time",
        "allow_prefill_compression, which leaves out the prompt's stage, is not offered: with count_prompt an event "
        "always evicts prompt entries first, without it never",
        "kappa-dispersion, lost mass and log-mass errors are measured at every event; the published code names them "
        "and computes none",
    )

    delta: int = param(128, "Steps between events.", source=_BOTH + " (divide_length)", low=1)
    trigger: str = param(
        "slack",
        "slack: fire at budget + delta; periodic: from the budget on when the logical length is a multiple of delta.",
        source=_RUN_ONE + ": slack; its replay script: periodic",
        choices=("slack", "periodic"),
    )
    count_prompt: bool = param(
        True,
        "Whether the trigger counts prompt entries. When it does not, prompt entries are never evicted in a stage of "
        "their own, and a prompt that fills the budget leaves the last b entries, whatever they are.",
        source=_RUN_ONE + ": true; its replay script: false (count_prompt_tokens)",
    )
    recent: int = param(
        8,
        "Newest entries that are neither evicted nor folded.",
        source="published replay script; cli run-one has 128, which at budgets of 64 to 128 would leave nothing else",
        low=0,
    )
    normalise: bool = param(
        True,
        "z-score per query head over the entries of a stage.",
        source=_RUN_ONE + ": true; its replay script: false (normalize_scores)",
    )
    aggregation: str = param("mean", "Over the 17 distances 1, 2, 4, …, 65536.", source=_BOTH, choices=("mean", "max"))
    disable_trig: bool = param(
        False, "Ablation: score by the norm term alone, without the cosines.", source="published ablation switch"
    )
    disable_mlr: bool = param(
        False, "Ablation: weigh key magnitudes by m instead of m − |c|.", source="published ablation switch"
    )
    coverage: float = param(
        0.0625,
        "Share of the surviving prompt entries that are evenly spread instead of highest-scored, at most half.",
        source=_BOTH + " (prefix_coverage_ratio)",
        low=0,
    )
    core_ratio: float = param(
        0.5, "The core's share of the free slots.", source=_BOTH + " (protected_core_ratio)", low=0
    )
    min_core: int = param(1, "The core's least size.", source=_BOTH + " (min_protected_core_tokens)", low=0)
    core_mode: str = param(
        "vote",
        "vote: every query head votes for its best, votes count before scores; score: the highest scores.",
        source=_BOTH + " (core_selection_mode)",
        choices=("vote", "score"),
    )
    core: str = param(
        "demote",
        "When descriptors outnumber slots: demote gives up as many of the core's lowest ranks as it takes until they "
        "fit, or none where value_distance or similarity_role forbid keeps them from fitting even without a core; hard "
        "never gives up any. Descriptors that are still too many, those of lowest mass, are evicted.",
        source="published code: demotes, down to no core at all",
        choices=("demote", "hard"),
    )
    promotion: float = param(
        0.0,
        "Entries with at least this multiple of the core's lowest score join it while there is room; 0 is none.",
        source=_BOTH + " (None)",
        low=0,
    )
    merge: bool = param(
        True,
        "false keeps the core and the highest scores instead of folding.",
        source=_BOTH + " (decode_merge_enabled)",
    )
    phases: bool = param(
        True,
        "Whether line breaks and words that open a conclusion separate runs.",
        source=_BOTH + " (use_phase_markers)",
    )
    local_window: int = param(
        32,
        "Neighbours at most this many positions apart fold first. Changes nothing, and costs no memory, unless core is "
        "hard, similarity_role is forbid or there is a value_distance: without these nothing generated is ever lost, "
        "and what neighbours stand for adjoins.",
        source=_BOTH + " (merge_local_window)",
        low=0,
    )
    similarity: float = param(
        0.985,
        "Threshold for the cosine of neighbours' mean un-rotated unit keys; what it does is similarity_role.",
        source=_BOTH,
        low=-1,
    )
    similarity_role: str = param(
        "rank",
        "rank: near neighbours that reach the threshold fold before those that do not; since cosines rank them anyway, "
        "no threshold changes anything. forbid: others never fold, and descriptors of lowest mass are evicted when "
        "too many remain.",
        source="published code: ranks only",
        choices=("rank", "forbid"),
    )
    value_distance: float = param(
        0.0,
        "Largest distance between the values of neighbours that fold, mean over layers and heads; 0 is no limit.",
        source=_BOTH + " (value_projection_threshold None)",
        low=0,
    )
    mass_gate: float = param(
        0.0,
        "Largest sum of scores of a descriptor, in multiples of the mean of the best scores; 0 is no limit.",
        source=_BOTH + " (None)",
        low=0,
    )
    operator: str = param(
        "keepkv",
        "Weights of folded values. keepkv: tokens times support; mean: tokens.",
        source=_BOTH + " (merge_operator)",
        choices=("keepkv", "mean"),
    )
    normaliser: str = param(
        "sum",
        "What weighted values are divided by: the sum of their weights, or its maximum with 1.",
        source="ours; the published maximum shrinks values of low support",
        choices=("sum", "published"),
    )
    representative: str = param(
        "score_max_source",
        "score_max_source: a descriptor keeps the key of its highest score; weighted_latest: the weighted mean of "
        "un-rotated keys, at its last position.",
        source=_BOTH + " (representative_mode)",
        choices=("score_max_source", "weighted_latest"),
    )
    log_mass: bool = param(
        False,
        "Whether log n is added to the attention logits of an entry that stands for n tokens.",
        source="published code: no such term",
    )

    def validate(self, preset: str) -> None:
        for name, value in (("coverage", self.coverage), ("core_ratio", self.core_ratio)):
            if value > 1:
                raise MethodError(f"{preset}: parameter {name} is {value!r}; it must be at most 1")

    def schedule(self, budget: int, encode: Encode | None = None) -> Schedule:
        cadence = Slack(self.delta) if self.trigger == "slack" else Periodic(self.delta)
        return cadence.schedule(
            budget, "two_stage", count_prompt=self.count_prompt, overflow="last", recent=self.recent
        )

    def scorer(self) -> Scorer:
        base = TriAttentionScorer(
            "global",
            self.normalise,
            self.aggregation,
            disable_trig=self.disable_trig,
            disable_mlr=self.disable_mlr,
        )
        return Staged(base, self.recent)

    def selector(self) -> Selector:
        return TwoStage(
            recent=self.recent,
            coverage=self.coverage,
            core_ratio=self.core_ratio,
            min_core=self.min_core,
            core_mode=self.core_mode,
            core=self.core,
            local_window=self.local_window,
            similarity=self.similarity,
            similarity_role=self.similarity_role,
            gate=self.mass_gate,
            distance=self.value_distance,
            promotion=self.promotion,
            phases=self.phases,
            merge=self.merge,
            representative=self.representative,
            voters=self.scorer() if self.core_mode == "vote" else None,
        )

    def bind(self, host: Host) -> Policy:
        """Scorer, voters and the fold's measures share one copy of the statistics."""
        scorer = self.scorer().bind(host)
        selector = replace(self.selector(), voters=None).bind(host)
        if self.core_mode == "vote":
            selector = replace(selector, voters=scorer)
        fold = self.representation()
        if self.merge:
            fold = replace(fold, statistics=scorer.base.statistics)
        return Policy(self, host, scorer, selector, self.allocation(), fold)

    def allocation(self) -> Allocation:
        return Uniform()

    def representation(self) -> Representation:
        return Fold(self.operator, self.representative, self.normaliser, self.log_mass) if self.merge else Evict()

    @classmethod
    def calibrator(cls, geometry: Geometry) -> Accumulator:
        return TriAttention.calibrator(geometry)

    @classmethod
    def read_calibration(cls, path: str | Path) -> Statistics:
        """Statistics from our own safetensors file or from an official ``.pt`` file. Raises MethodError."""
        return TriAttention.read_calibration(path)
