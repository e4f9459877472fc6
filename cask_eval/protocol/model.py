"""The protocol: what a study claims, on what, and what each outcome will mean. Data only; no file access.

Every number that decides is a decimal string, so that its canonical form is the same everywhere.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from cask_eval.fields import Name, Param, Strict


def _decimal(text: str) -> str:
    if not re.fullmatch(r"-?(0|[1-9][0-9]{0,11})(\.[0-9]{1,12})?", text):
        raise ValueError('must be a plain decimal in quotes, such as "0.05"')
    return text


def _between(low: str, high: str, *, open_low: bool = False):
    def check(text: str) -> str:
        value = Decimal(_decimal(text))
        if not (Decimal(low) <= value <= Decimal(high)) or (open_low and value == Decimal(low)):
            raise ValueError(
                f"must lie {'above' if open_low else 'between'} {low} and {'at most' if open_low else ''} "
                f"{high}".replace("  ", " ")
            )
        return text

    return AfterValidator(check)


Level = Annotated[str, _between("0", "0.5", open_low=True)]
Share = Annotated[str, _between("0", "1")]


class Task(Strict):
    """The problems. `dev` and `heldout` are paths of split manifests, relative to the workspace."""

    name: Name
    dev: str
    heldout: str


class Model(Strict):
    """One model under test. `id` is ``embedded:NAME``, a local folder, or a hub id (then `revision` is required)."""

    id: Annotated[str, Field(min_length=1)]
    name: Name
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    calibration: str | None = Field(
        default=None,
        description="TriAttention statistics: a .safetensors path relative to the workspace, or 'bundled' "
        "for the file that lies beside the model's weights.",
    )


class Generation(Strict):
    """Decoding. Temperature "0" is greedy."""

    temperature: Annotated[str, _between("0", "5")] = "0"
    top_p: Annotated[str, _between("0", "1", open_low=True)] = "1"
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)]


class Arm(Strict):
    """A method by its preset name, with the parameters that differ from the preset's defaults."""

    preset: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    params: dict[str, Param] = {}


class Candidate(Arm):
    """The arm that the hypothesis is about. `tune` lists, per parameter, the values that dev may choose from."""

    tune: dict[str, Annotated[list[Param], Field(min_length=1)]] = {}


class Control(Arm):
    """An arm that is run and reported but never decides."""

    name: Name


class Tuning(Strict):
    """The rule by which the dev split chooses. Ties go to the first value in the order listed under `tune` when
    `ties` is ``first``, to the numerically smallest when it is ``smallest``."""

    select: Literal["max_mean_accuracy"] = "max_mean_accuracy"
    scope: Literal["all_cells", "per_cell"] = "all_cells"
    ties: Literal["smallest", "first"] = "smallest"


class MatchedCache(Strict):
    """When two arms' realised caches count as equal on the held-out split (methods.md §4, Acceptance)."""

    reference: Literal["baseline"] = "baseline"
    tolerance: Share = "0.03"
    interval_tolerance: Share = "0.05"
    peak_ratio: Annotated[str, _between("1", "100")] = "1.5"
    min_active: Share = "0.8"
    max_cap_gap: Share = "0.10"


class Veto(Strict):
    """At which level a cell counts as negative; not shared out over the cells, so that the veto is not weak."""

    alpha: Level


class Test(Strict):
    """The registered test of each cell."""

    endpoint: Literal["accuracy"] = "accuracy"
    procedure: Literal["paired_bootstrap", "mcnemar_exact", "mcnemar_midp"]
    alternative: Literal["two-sided", "greater"] = "two-sided"
    alpha: Level
    correction: Literal["bonferroni", "none"] = "bonferroni"
    veto: Veto


Condition = Annotated[str, Field(pattern=r"^(>=|<=|==|!=|>|<) ?\d{1,6}$")]


class When(Strict):
    """All given conditions must hold. Counts are of cells; a void cell is neither positive nor negative."""

    positive_cells: Condition | None = None
    negative_cells: Condition | None = None
    void_cells: Condition | None = None

    @model_validator(mode="after")
    def _not_empty(self):
        if not self.model_fields_set:
            raise ValueError("must give at least one of positive_cells, negative_cells, void_cells")
        return self


class Branch(Strict):
    """A pre-registered outcome. The first branch whose conditions hold decides."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    when: When | None = None
    otherwise: Literal[True] | None = None
    decision: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _one_form(self):
        if (self.when is None) == (self.otherwise is None):
            raise ValueError("must give either `when` or `otherwise: true`")
        return self


class Protocol(Strict):
    """A study, before anything has been run."""

    study: Name
    hypothesis: Annotated[str, Field(min_length=10)]
    expected_effect: Annotated[str, _between("-1", "1")] | None = Field(
        default=None, description="Hypothesised accuracy difference, candidate minus baseline, for the power lint."
    )
    expected_discordance: Share | None = Field(
        default=None, description="Expected share of problems on which exactly one arm is right, for the power lint."
    )
    task: Task
    models: Annotated[list[Model], Field(min_length=1)]
    generation: Generation
    budgets: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    baseline: Arm
    candidate: Candidate
    controls: list[Control] = []
    tuning: Tuning = Tuning()
    matched_cache: MatchedCache = MatchedCache()
    test: Test
    branches: Annotated[list[Branch], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self):
        _unique([m.name for m in self.models], "models[].name")
        _unique(self.budgets, "budgets")
        _unique([b.name for b in self.branches], "branches[].name")
        _unique(["baseline", "candidate", *(c.name for c in self.controls)], "controls[].name")
        if self.generation.samples > 1 and Decimal(self.generation.temperature) == 0:
            raise ValueError(
                'generation.samples is above 1 but temperature is "0": greedy samples are all alike; '
                "raise the temperature or set samples to 1"
            )
        if self.generation.samples > 1 and self.test.procedure.startswith("mcnemar"):
            raise ValueError(
                f"test.procedure {self.test.procedure} needs one sample per problem, but "
                f"generation.samples is {self.generation.samples}; use paired_bootstrap"
            )
        both = set(self.candidate.params) & set(self.candidate.tune)
        if both:
            raise ValueError(f"candidate: {sorted(both)} is both fixed under params and listed under tune; keep one")
        return self

    @property
    def cells(self) -> list[Cell]:
        """Model × budget, in the registered order. This is the family of the multiplicity correction."""
        return [Cell(model=m.name, budget=b) for m in self.models for b in self.budgets]

    @property
    def arms(self) -> dict[str, Arm]:
        """Arm name → arm, in the order they are run."""
        return {"baseline": self.baseline, "candidate": self.candidate, **{c.name: c for c in self.controls}}

    def document(self) -> dict[str, Any]:
        """The canonical document: defaults written out, so that a later default cannot change a locked study."""
        return self.model_dump(mode="json")


class Cell(Strict):
    """One model at one nominal budget."""

    model: str
    budget: int

    @property
    def name(self) -> str:
        return f"{self.model}/b{self.budget}"


def _unique(values: list, where: str) -> None:
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"{where}: {', '.join(twice)} appears more than once")
