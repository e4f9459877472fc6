"""The protocol: what a study claims, on what, and what each outcome will mean. Data only; no file access.

Every number that decides is a decimal string, so that its canonical form is the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

from cask_eval.fidelity import AFTER, ENDPOINTS
from cask_eval.fields import Name, Param, Strict

# The full cache: what references are generated and the ceiling is measured with.
FULL = "fullkv"

# The arms that a study of fidelity has beside the registered ones, in a cell of each model's own.
REFERENCE, CEILING = "reference", "ceiling"

# A study is run and read by people; and what is asked of a protocol grows with products of these lists.
MAX_LISTED = 200

# The smallest level of one comparison that a million draws still resolve.
LEAST_LEVEL = Decimal("0.00002")


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


def Later(default: Any, **kwargs: Any) -> Any:
    """A field that came after protocols had been locked: where it has its default it is left out of the canonical
    document, so that theirs stay what they were. Its default can never change."""
    return Field(default, exclude_if=lambda value: value == default, **kwargs)


class Task(Strict):
    """The problems. `dev` and `heldout` are paths of split manifests, relative to the workspace."""

    name: Name
    dev: str
    heldout: str


class Prompt(Strict):
    """How models are asked. Without it, the problem's text as it is."""

    file: str | None = Field(
        default=None,
        description="A text file with {problem} in it once, relative to the workspace; its digest is locked. Without "
        "it the problem's text stands alone.",
    )
    form: Literal["raw", "chat"] = Field(
        default="raw",
        description="'raw' completes the text; 'chat' makes it the user's message in the model's own chat template, up "
        "to where the answer begins.",
    )
    system: str | None = Field(default=None, description="The system message, for 'chat'.")
    options: dict[str, Param] = Field(
        default={}, description="What the chat template is given besides, such as {enable_thinking: false}."
    )

    @model_validator(mode="after")
    def _chat_only(self):
        if self.form == "raw" and (self.system is not None or self.options):
            raise ValueError("form is raw, which has no system message and no options; use chat or leave them out")
        return self


class Model(Strict):
    """One model under test. `id` is ``embedded:NAME``, ``smollm2:135m``, a local folder or .gguf file, or a hub id
    (then `revision` is required)."""

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
    """Decoding. Temperature "0" is greedy. With a fidelity endpoint it is how the references are generated."""

    temperature: Annotated[str, _between("0", "5")] = "0"
    top_p: Annotated[str, _between("0", "1", open_low=True)] = "1"
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)]


class Arm(Strict):
    """A method by its preset name, with the parameters that differ from the preset's defaults."""

    preset: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    params: dict[str, Param] = {}


class Candidate(Arm):
    """An arm that the hypothesis is about. `tune` lists, per parameter, the values that dev may choose from."""

    name: Name = "candidate"
    tune: dict[str, Annotated[list[Param], Field(min_length=1)]] = {}


class Control(Arm):
    """An arm that is run and reported but never decides."""

    name: Name


class Tuning(Strict):
    """The rule by which the dev split chooses. Ties go to the first value in the order listed under `tune` when
    `ties` is ``first``, to the numerically smallest when it is ``smallest``."""

    select: Literal["max_mean_accuracy", "max_mean_endpoint"] = Field(
        "max_mean_accuracy",
        description="'max_mean_endpoint' goes with a fidelity endpoint: the greatest mean improvement over the "
        "baseline.",
    )
    scope: Literal["all_cells", "per_cell"] = "all_cells"
    ties: Literal["smallest", "first"] = "smallest"


class Screening(Strict):
    """The rule by which the dev split decides which candidates the held-out split is spent on.

    ``best_dev_gain``: a candidate's gain is the mean over the cells of its chosen configuration's dev accuracy minus
    the baseline's. Of those that gain at least `min_gain`, the `survivors` best are confirmed; ties go to the one
    listed first. The family of the correction is survivors × cells, however many survive.
    """

    survivors: Annotated[int, Field(ge=1)]
    rule: Literal["best_dev_gain"] = "best_dev_gain"
    min_gain: Annotated[str, _between("-1", "1")] = "0"


class MatchedCache(Strict):
    """When two arms' realised caches count as equal on the held-out split (docs/DEFINITIONS.md §5)."""

    reference: Literal["baseline"] = "baseline"
    tolerance: Share = "0.03"
    interval_tolerance: Share = "0.05"
    peak_ratio: Annotated[str, _between("1", "100")] = "1.5"
    min_active: Share = "0.8"
    max_cap_gap: Share = "0.10"
    prompt_policies: Literal["same", "any"] = Field(
        default="same",
        description="'any' compares arms that treat the prompt differently, such as CASK with a pinned prompt; the "
        "difference is then one of prompt policies too.",
    )


class Exclude(Strict):
    """Which problems are left out of a comparison, in both arms and with all their samples. ``never_compressed``: no
    trial of either arm was ever compressed. ``prefix_budget_exhausted``: under the baseline's schedule the prompt takes
    up the whole budget at an event, whatever is generated. Tuning, and what is reported of each arm alone, leave out
    nothing."""

    regimes: Annotated[list[Literal["never_compressed", "prefix_budget_exhausted"]], Field(min_length=1)]

    @model_validator(mode="after")
    def _once(self):
        _unique(self.regimes, "exclude.regimes")
        return self


class Veto(Strict):
    """At which level a comparison counts as negative; not shared out over the family, so that the veto is not weak."""

    alpha: Level


class NonInferiority(Strict):
    """When a comparison counts as non-inferior: a loss of `margin` or more, in the endpoint's own unit, is rejected at
    `alpha`, one-sided and uncorrected: by Tango's score test for accuracy, by the bootstrap for other endpoints. A
    claim that all of them are needs no correction."""

    margin: Annotated[str, _between("0", "0.5", open_low=True)]
    alpha: Level


Endpoint = Literal[
    "accuracy", "top1", "top5", "nll", "kl", "top1_after", "top5_after", "nll_after", "kl_after"
]


class Test(Strict):
    """The registered test of each comparison, which is one candidate against the baseline in one cell."""

    endpoint: Endpoint = Field(
        "accuracy",
        description="What a trial is judged by: whether its own answer is right; or, when the full cache's own output "
        "is replayed, the share of its tokens that are the most probable (top1) or among the five (top5), their mean "
        "negative log-probability (nll), or the divergence from the full cache's prediction (kl). With '_after' only "
        "tokens count that were predicted from a compressed cache.",
    )
    procedure: Literal["paired_bootstrap", "mcnemar_exact", "mcnemar_midp", "sign_flip"]
    alternative: Literal["two-sided", "greater"] = "two-sided"
    alpha: Level
    correction: Literal["bonferroni", "holm", "max_t", "none"] = Field(
        default="bonferroni",
        description="'max_t' flips the signs of whole problems in all comparisons together, so it goes with sign_flip or "
        "mcnemar_exact.",
    )
    veto: Veto
    non_inferiority: NonInferiority | None = Later(
        None, description="With accuracy it needs one sample per problem."
    )


Condition = Annotated[str, Field(pattern=r"^(>=|<=|==|!=|>|<) ?\d{1,6}$")]


class When(Strict):
    """All given conditions must hold. Counts are of comparisons, so of cells where there is one candidate; a void one
    is nothing else, and one that screening left out is nothing at all."""

    positive_cells: Condition | None = None
    negative_cells: Condition | None = None
    void_cells: Condition | None = None
    non_inferior_cells: Condition | None = Later(None, description="Needs test.non_inferiority.")

    @model_validator(mode="after")
    def _not_empty(self):
        if not self.model_fields_set:
            raise ValueError(
                "must give at least one of positive_cells, negative_cells, void_cells, non_inferior_cells"
            )
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
    """A study, before anything has been run. `candidate` is short for a list of one; after validation it is None and
    `candidates` holds them all."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["candidate"]}, {"required": ["candidates"]}]},
    )

    study: Name
    hypothesis: Annotated[str, Field(min_length=10)]
    expected_effect: Annotated[str, _between("-1", "1")] | None = Field(
        default=None, description="Hypothesised accuracy difference, candidate minus baseline, for the power lint."
    )
    expected_discordance: Share | None = Field(
        default=None, description="Expected share of problems on which exactly one arm is right, for the power lint."
    )
    task: Task
    prompt: Prompt | None = Later(None, description="How the models are asked; the bare problem where it is missing.")
    models: Annotated[list[Model], Field(min_length=1)]
    generation: Generation
    budgets: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    baseline: Arm
    candidate: Candidate | None = Field(
        default=None, exclude=True, description="The one candidate; several are listed under `candidates` instead."
    )
    candidates: Annotated[list[Candidate], Field(min_length=1)] = Field(
        default=[], description="Several candidates, each with a name of its own."
    )
    controls: list[Control] = []
    tuning: Tuning = Tuning()
    screening: Screening | None = Field(
        default=None, description="Which candidates are confirmed; all of them where it is missing."
    )
    matched_cache: MatchedCache = MatchedCache()
    exclude: Exclude | None = Later(
        None, description="Which problems the comparisons leave out; none where it is missing."
    )
    test: Test
    branches: Annotated[list[Branch], Field(min_length=1)]
    anchor: Literal["none", "registration"] = Later(
        "none",
        description="'registration': nothing runs before a time-stamp authority has signed the registration, and every "
        "trial's seed depends on its signature.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _listed(cls, data: Any, handler: ModelWrapValidatorHandler[Protocol]) -> Protocol:
        given = handler(data)
        if given.candidate is None and not given.candidates:
            raise ValueError("candidate is missing; add it, or list several under `candidates`")
        if given.candidate is None:
            return given
        if given.candidates:
            raise ValueError("candidates are given beside `candidate`; keep one of the two")
        return given.model_copy(update={"candidate": None, "candidates": [given.candidate]})

    @model_validator(mode="after")
    def _consistent(self):
        for name in ("models", "budgets", "candidates", "controls", "branches"):
            if (count := len(getattr(self, name))) > MAX_LISTED:
                raise ValueError(f"{name}: {count} are listed, and {MAX_LISTED} are the most; split the study")
        _unique([m.name for m in self.models], "models[].name")
        _unique(self.budgets, "budgets")
        _unique([b.name for b in self.branches], "branches[].name")
        names = [c.name for c in self.candidates]
        _unique(["baseline", *names], "candidates[].name")
        _unique(["baseline", *names, *(c.name for c in self.controls)], "controls[].name")
        if self.screening and self.screening.survivors > len(names):
            raise ValueError(
                f"screening.survivors is {self.screening.survivors}, but there are {len(names)} candidates; "
                "survivors that cannot be would only make the correction harsher"
            )
        if self.generation.samples > 1 and Decimal(self.generation.temperature) == 0:
            raise ValueError(
                'generation.samples is above 1 but temperature is "0": greedy samples are all alike; '
                "raise the temperature or set samples to 1"
            )
        if self.generation.samples > 1 and self.test.procedure.startswith("mcnemar"):
            raise ValueError(
                f"test.procedure {self.test.procedure} needs one sample per problem, but "
                f"generation.samples is {self.generation.samples}; use paired_bootstrap or sign_flip"
            )
        if self.fidelity:
            self._fits_fidelity()
        elif self.tuning.select != "max_mean_accuracy":
            raise ValueError(
                f"tuning.select is {self.tuning.select}, but test.endpoint is accuracy; use max_mean_accuracy"
            )
        if self.test.correction == "max_t" and self.test.procedure not in ("sign_flip", "mcnemar_exact"):
            raise ValueError(
                f"test.correction max_t flips signs, but test.procedure is {self.test.procedure}; use sign_flip, or "
                "mcnemar_exact with one sample, or another correction"
            )
        if self.test.non_inferiority and self.generation.samples > 1 and not self.fidelity:
            raise ValueError(
                "test.non_inferiority is Tango's test, which needs one sample per problem, but generation.samples is "
                f"{self.generation.samples}; leave it out or set samples to 1"
            )
        if self.test.non_inferiority is None and any(b.when and b.when.non_inferior_cells for b in self.branches):
            raise ValueError(
                "branches ask for non_inferior_cells, but test.non_inferiority is missing; give its margin and alpha"
            )
        for candidate in self.candidates:
            if both := set(candidate.params) & set(candidate.tune):
                raise ValueError(
                    f"{candidate.name}: {sorted(both)} is both fixed under params and listed under tune; keep one"
                )
        return self

    def _fits_fidelity(self) -> None:
        test = self.test
        if test.procedure not in ("sign_flip", "paired_bootstrap"):
            raise ValueError(
                f"test.procedure {test.procedure} counts right and wrong answers, but test.endpoint {test.endpoint} is "
                "a real number; use sign_flip or paired_bootstrap"
            )
        if self.tuning.select != "max_mean_endpoint":
            raise ValueError(
                f"tuning.select is {self.tuning.select}, but with test.endpoint {test.endpoint} every arm is given the "
                "same output, so their accuracies are equal; use max_mean_endpoint"
            )
        taken = {REFERENCE, CEILING} & set(self.arms)
        if taken:
            raise ValueError(
                f"{sorted(taken)[0]!r} names an arm, but with test.endpoint {test.endpoint} it is what the study "
                "itself runs with the full cache; rename the arm"
            )
        family = 1 if test.correction == "none" else self.family
        if Decimal(test.alpha) / family < LEAST_LEVEL:
            raise ValueError(
                f"test.alpha {test.alpha} over {family} comparisons is below {LEAST_LEVEL} each, finer than resampling "
                "can resolve; list fewer cells or candidates"
            )

    @property
    def fidelity(self) -> bool:
        """Whether trials are judged by how they follow the full cache's output instead of by their own answer."""
        return self.test.endpoint.removesuffix(AFTER) in ENDPOINTS

    @property
    def reference_cells(self) -> list[Cell]:
        """One cell per model for what runs with the full cache; none where trials are judged by their own answer."""
        return [Cell(model=m.name, budget=0) for m in self.models] if self.fidelity else []

    @property
    def cells(self) -> list[Cell]:
        """Model × budget, in the registered order."""
        return [Cell(model=m.name, budget=b) for m in self.models for b in self.budgets]

    @property
    def family(self) -> int:
        """How many comparisons (candidate × cell) the correction is for, whatever becomes of them."""
        confirmed = self.screening.survivors if self.screening else len(self.candidates)
        return confirmed * len(self.cells)

    @property
    def arms(self) -> dict[str, Arm]:
        """Arm name → arm, in the order they are run."""
        named = {arm.name: arm for arm in (*self.candidates, *self.controls)}
        return {"baseline": self.baseline, **named}

    def heldout_arms(self, survivors: Collection[str]) -> dict[str, Arm]:
        """The arms that the held-out split is spent on: all but the candidates that did not survive."""
        out = {c.name for c in self.candidates if c.name not in survivors}
        return {name: arm for name, arm in self.arms.items() if name not in out}

    def comparison(self, candidate: str, cell: str) -> str:
        """What a comparison is called: its cell, after its candidate where the protocol has several."""
        return f"{candidate} {cell}" if len(self.candidates) > 1 else cell

    def document(self) -> dict[str, Any]:
        """The canonical document: defaults written out, so that a later default cannot change a locked study."""
        return self.model_dump(mode="json")


class Cell(Strict):
    """One model at one nominal budget; 0 stands for the full cache."""

    model: str
    budget: int

    @property
    def name(self) -> str:
        if not self.budget:
            return f"{self.model}/{REFERENCE}"
        return f"{self.model}/b{self.budget}"


def _unique(values: list, where: str) -> None:
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"{where}: {', '.join(twice)} appears more than once")
