"""The analysis document: everything the decision rests on, as the report prints it and `verify` derives again.

Counts are integers; every other number is a decimal string with nine significant digits (`number`), so that the
document has one digest on every platform. Exact ratios follow from the counts beside them. A number that cannot be
given, such as a mean cache without any account, is an empty string.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from cask_eval.fields import Strict

# What `number` writes, or nothing. The bounds keep a hostile document from being a hard sum.
Number = Annotated[str, Field(pattern=r"^(-?\d{1,20}(\.\d{1,20}(e[+-]\d{1,3})?|e[+-]\d{1,3}|/\d{1,20})?)?$")]

Outcome = Literal["positive", "negative", "null", "void"]


def number(value: float | Fraction) -> str:
    """A number as the document writes it: nine significant digits. Raises ValueError on NaN or infinity."""
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{value} cannot be a result")
    return format(float(value) + 0.0, ".9g")


class ArmResult(Strict):
    """One arm in one cell. `correct` counts right samples out of `trials` expected ones; missing, failed and
    truncated-without-answer trials are wrong. Caches are entries per layer and KV head. `wiped_regions` is the share
    of 64-token stretches of the history that an event left without an entry, pooled over trials, events, layers and
    heads; `longest_wiped` the most tokens in a row of which nothing was left. Both are empty without an event.
    `fidelity`: endpoint → mean over the problems that have it, of replays only; their `correct` is the references'."""

    preset: str
    params: dict[str, str | int | bool]
    budget: int
    trials: int
    correct: int
    missing: int
    failed: int
    truncated: int
    accuracy: Number
    mean_cache: Number
    pooled_cache: Number
    peak_cache: Number
    kept_min: int | None
    kept_max: int | None
    wiped_regions: Number
    longest_wiped: int | None
    active: Number
    mean_output_tokens: Number
    fidelity: dict[str, Number] = Field(default={}, exclude_if=lambda value: not value)


class Interval(Strict):
    level: Number
    low: Number
    high: Number


class MatchedResult(Strict):
    """`verdict` says how the caches compare; `reasons` holds one line per fault. `ratio` is the candidate's mean cache
    over the baseline's, `interval` its paired-bootstrap interval."""

    verdict: Literal["matched", "tolerated", "void"]
    ratio: Number
    interval: Interval
    reasons: list[str]


class NonInferior(Strict):
    """The test of a loss of `margin` or more: z (empty where the test has none), the one-sided p, and whether it is
    rejected at `alpha`."""

    margin: Number
    alpha: Number
    z: Number
    p: Number
    shown: bool


class Flip(Strict):
    """A problem on which the arms differ: right samples of each."""

    problem: str
    baseline: int
    candidate: int


class PairedValues(Strict):
    """The endpoint of a problem in both arms, and the candidate's improvement."""

    problem: str
    baseline: Number
    candidate: Number
    improvement: Number


class CellResult(Strict):
    """One comparison: a candidate against the baseline in one cell. `difference` is an improvement: positive where the
    candidate is better, so of nll and kl it is the baseline's less the candidate's. `flips` are of accuracy, `values`
    of the other endpoints, one for each problem that is compared. `p` holds every test by procedure name;
    `p_registered` is the protocol's, `p_adjusted` after the registered correction over the whole family, `p_veto` the
    one-sided p for harm. `excluded` counts the problems that the registered rule left out, which are no part of `n`."""

    candidate: str
    cell: str
    model: str
    budget: int
    n: int
    samples: int
    wins: int
    losses: int
    ties: int
    difference: Number
    standard_error: Number
    interval: Interval
    interval_adjusted: Interval
    p: dict[str, Number]
    p_registered: Number
    p_adjusted: Number
    p_veto: Number
    matched: MatchedResult
    outcome: Outcome
    flips: list[Flip]
    non_inferior: NonInferior | None = Field(default=None, exclude_if=lambda value: value is None)
    values: list[PairedValues] = Field(default=[], exclude_if=lambda value: not value)
    excluded: int = Field(default=0, exclude_if=lambda value: value == 0)


class Screened(Strict):
    """What the dev split said of a candidate: its mean gain over the baseline, and whether it is confirmed."""

    candidate: str
    gain: Number
    survived: bool


class AnalysisDocument(Strict):
    """The whole result. `label` is ``exploratory`` where the protocol was amended after the held-out split
    was consumed, or the run said that it was.

    `screening` lists every registered candidate, `cells` the comparisons of those that survived, candidate by
    candidate. `family` is the registered number of comparisons, which those that screening left out stay in.
    Fields that no protocol asked for are left out.
    `arms` maps cell → arm → its numbers, for every arm that the held-out split was spent on, references included.
    """

    analysis: Literal["cask-eval/analysis/1"] = "cask-eval/analysis/1"
    study: str
    hypothesis: str
    registration: str
    label: Literal["confirmatory", "exploratory"]
    procedure: str
    alternative: str
    alpha: Number
    correction: str
    family: int
    screening: list[Screened]
    cells: list[CellResult]
    positive_cells: int
    negative_cells: int
    void_cells: int
    non_inferior_cells: int | None = Field(default=None, exclude_if=lambda value: value is None)
    arms: dict[str, dict[str, ArmResult]]
    branch: str
    decision: str
    notes: list[str]
    endpoint: str = Field(default="accuracy", exclude_if=lambda value: value == "accuracy")

    @property
    def all_void(self) -> bool:
        """Whether every comparison is void, so that the branch was taken without anything having been decided."""
        return bool(self.cells) and self.void_cells == len(self.cells)
