"""The record: what one trial left behind. Data only.

A record holds nothing that depends on when, where or beside what the trial ran, so a resumed or distributed
run leaves the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Literal

from pydantic import Field

from cask_eval.fields import Digest, Strict
from cask_eval.residency import Residency
from cask_eval.stages import Regime, Stages, regime

Count = Annotated[int, Field(ge=0)]

# Closed: a status that is not here cannot be recorded. Only `finished` and `truncated` can be right.
Status = Literal["finished", "truncated", "failed"]


class Failure(Strict):
    """Why a trial has no output. `infrastructure` faults may be retried; `method` faults are results."""

    kind: Literal["infrastructure", "method"]
    error: str
    message: str


class ResidencyRecord(Strict):
    """`cask_eval.residency.Residency` as stored."""

    layers: Count
    kv_heads: Count
    entry_bytes: Count
    prompt_tokens: Count
    steps: Count
    events: list[Annotated[list[Count], Field(min_length=3, max_length=3)]]
    entries: Count
    payload_bytes: Count
    aux_bytes: Count
    peak_entries: Count
    peak_bytes: Count

    def account(self) -> Residency:
        own = {name: getattr(self, name) for name in type(self).model_fields if name != "events"}
        return Residency(**own, events=[(step, before, after) for step, before, after in self.events])


class RegionsRecord(Strict):
    """How much of the history the trial's events left: over events, layers and heads, `bins` of 64 positions were
    looked at and `empty` of them had no survivor; `longest` is the longest run of positions that was wiped out."""

    bins: Count
    empty: Count
    longest: Count


class StagesRecord(Strict):
    """`cask_eval.regime.Stages` as stored."""

    prefix_events: Count
    decode_events: Count
    exhausted: Count
    guards: dict[Literal["prefix_budget_exhausted", "merge_inactive"], Count]

    @classmethod
    def of(cls, found: Stages) -> StagesRecord:
        return cls(**{**asdict(found), "guards": dict(found.guards)})

    def stages(self) -> Stages:
        return Stages(self.prefix_events, self.decode_events, self.exhausted, self.guards)


class GradeRecord(Strict):
    """The grader's verdict. `how` is how the answer was found; `grader` is name and version."""

    correct: bool
    extracted: str | None
    how: str
    grader: str


class ChainRecord(Strict):
    """One chain of a trial that ran several side by side and put them to the vote; fields as in `Record`."""

    status: Literal["finished", "truncated"]
    output: str
    output_ids: list[Count]
    extracted: str | None
    residency: ResidencyRecord


class Record(Strict):
    """One trial. The key is (phase, cell, arm, config, problem, sample)."""

    record: Literal["cask-eval/record/1"] = "cask-eval/record/1"
    study: str
    registration: Digest
    phase: Literal["dev", "heldout"]
    cell: str
    arm: str
    config: str = Field(
        default="",
        description="dev only: the tuned values, as `name=value,…`; followed by `@budget` in a trial of the search for "
        "the configuration's budget",
    )
    problem: str
    problem_digest: Digest
    sample: Count
    seed: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    status: Status
    failure: Failure | None = None
    prompt_tokens: Count
    output_tokens: Count
    output: str
    output_ids: Annotated[list[Count], Field(description="token ids, so that a trial can be executed again")]
    grade: GradeRecord
    residency: ResidencyRecord | None
    kept_min: Count | None = Field(default=None, description="fewest entries any head held after any event")
    kept_max: Count | None = Field(default=None, description="most entries any head held after any event")

    regions: RegionsRecord | None = None
    stages: StagesRecord | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="what the events did to prompt and output; left out by failed trials, and by records older than it",
    )
    measures: dict[str, str] = Field(
        default={},
        description="the method's own numbers, averaged over the events that gave them, and what was physically "
        "allocated; not part of the evidence",
    )
    chains: list[ChainRecord] = Field(
        default=[],
        description="every chain of a trial that ran several; the record's own status, output and grade are those of "
        "the chain that won the vote, its residency is that of all chains together",
    )

    def account(self) -> Residency | None:
        """The residency account, with those of the chains in it; None for a failed trial."""
        if self.residency is None:
            return None
        own = self.residency.account()
        return replace(own, chains=[c.residency.account() for c in self.chains]) if self.chains else own

    @property
    def regime(self) -> Regime | None:
        """Which part of its method the trial has tested; None for a failed trial, and for a compressed one whose record
        is older than `stages`."""
        account = self.account()
        if account is None or (account.active and self.stages is None):
            return None
        return regime(self.stages.stages() if self.stages else Stages(), account.active)

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        return (self.phase, self.cell, self.arm, self.config, self.problem, self.sample)
