"""The record: what one trial left behind. Data only.

A record holds nothing that depends on when, where or beside what the trial ran, so a resumed or distributed
run leaves the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from cask_eval.fidelity import AFTER, Fidelity, Rates
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

    @classmethod
    def of(cls, account: Residency) -> ResidencyRecord:
        return cls(**{k: v for k, v in account.to_json().items() if k != "chains"})

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
    """`cask_eval.stages.Stages` as stored."""

    prefix_events: Count
    decode_events: Count
    exhausted: Count
    guards: dict[Literal["prefix_budget_exhausted", "merge_inactive"], Count]

    @classmethod
    def of(cls, found: Stages) -> StagesRecord:
        return cls(**{**asdict(found), "guards": dict(found.guards)})

    def stages(self) -> Stages:
        return Stages(self.prefix_events, self.decode_events, self.exhausted, self.guards)


# Nine digits behind the point: what is compared later is exactly what stands here.
Decimal9 = Annotated[str, Field(pattern=r"^\d{1,12}\.\d{9}$")]


class RatesRecord(Strict):
    """`cask_eval.fidelity.Rates` as stored."""

    tokens: Annotated[int, Field(ge=1)]
    top1: Decimal9
    top5: Decimal9
    nll: Decimal9
    kl: Decimal9

    @classmethod
    def of(cls, found: Rates) -> RatesRecord:
        """Raises ValueError where there is no divergence from the full cache."""
        if found.kl is None:
            raise ValueError("kl: is missing; replay with the logits of the full cache")
        numbers = {name: f"{getattr(found, name):.9f}" for name in ("top1", "top5", "nll", "kl")}
        return cls(tokens=found.tokens, **numbers)


    def near(self, other: RatesRecord) -> bool:
        """Whether these are the same tokens, measured in other company."""
        spare = [(name, 1 / self.tokens + 0.005) for name in ("top1", "top5")]
        spare += [(name, 0.002 + 0.01 * float(getattr(other, name))) for name in ("nll", "kl")]
        return self.tokens == other.tokens and all(
            abs(float(getattr(self, name)) - float(getattr(other, name))) <= most for name, most in spare
        )


class FidelityRecord(Strict):
    """How the trial's cache followed the tokens that it was given: `cask_eval.fidelity.Fidelity` as stored, `after`
    being None where nothing was compressed. `arrays` is the digest of its numbers per token
    (`cask_eval.records.tokens`), from which all others follow."""

    whole: RatesRecord
    after: RatesRecord | None
    first_mismatch: Count
    arrays: Digest

    @classmethod
    def of(cls, found: Fidelity, arrays: str) -> FidelityRecord:
        after = RatesRecord.of(found.after) if found.after else None
        return cls(
            whole=RatesRecord.of(found.whole), after=after, first_mismatch=found.first_mismatch, arrays=arrays
        )

    def near(self, other: FidelityRecord) -> bool:
        """Whether the other is the same measurement but for rounding: logits differ in their last digits from batch to
        batch, and near-ties of probabilities with them. nll and kl may differ by 0.002 nats and 1 %, top1 and top5 by
        one token and 0.5 % of them; where the first mismatch is, and each token's number, is not compared."""
        if (self.after is None) != (other.after is None):
            return False
        parts = [(self.whole, other.whole)] + ([(self.after, other.after)] if self.after else [])
        return all(a.near(b) for a, b in parts)

    def endpoint(self, name: str) -> Fraction | None:
        """One of `cask_eval.fidelity.ENDPOINTS`, with `AFTER` for tokens that were predicted from a compressed cache;
        None where there are none."""
        rates = self.after if name.endswith(AFTER) else self.whole
        return None if rates is None else Fraction(getattr(rates, name.removesuffix(AFTER)))


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
    fidelity: FidelityRecord | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="only of a replay: status, output and grade are then those of the reference that was replayed",
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
