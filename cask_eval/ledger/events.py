"""The ledger's events and what each commits to. Data only.

Life of a study: register → dev_run → select → consume → records (one per session) → close → analysis; an anchor or an
amendment may follow any of them. Fields with a default came later: events without them stay valid.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cask_eval.fields import Digest, Name, Param, Strict

Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

Kind = Literal["register", "amend", "dev_run", "select", "consume", "records", "close", "analysis", "anchor"]


class SplitLock(Strict):
    path: str
    digest: Digest
    merkle_root: Digest
    count: Annotated[int, Field(ge=1)]


class PackageLock(Strict):
    """One method package: its distribution's version and the digest of its source tree as loaded."""

    name: str
    version: str
    digest: Digest


class ModelLock(Strict):
    """A model as loaded. `files` maps file name → digest; `digest` covers them all. Sizes are the geometry that the
    residency accounts are checked against (`itemsize`: bytes of one number); `stop_ids` are the tokens that end an
    output."""

    name: Name
    id: str
    digest: Digest
    files: dict[str, Digest]
    chat_template: Digest | None
    calibration: Digest | None
    layers: Positive
    query_heads: Positive
    kv_heads: Positive
    head_dim: Positive
    itemsize: Positive
    max_prompt_tokens: Positive
    stop_ids: list[Natural]

    @property
    def entry_bytes(self) -> int:
        """Bytes of one full-precision key and value of one KV head."""
        return 2 * self.head_dim * self.itemsize


class Environment(Strict):
    """What ran the study. `packages` maps distribution → version. `kernels`: the Triton kernels that were asked for,
    separated by commas; left out where there are none, as in all that was locked before there were any."""

    python: str
    platform: str
    device: str
    cuda: str | None
    driver: str | None
    packages: dict[str, str]
    toolkit: Digest
    kernels: str = Field(default="", exclude_if=lambda value: not value)


class Invocation(Strict):
    """How a command was called: its arguments, paths by public names, and the commit of the toolkit's source where it
    runs from a git work tree. For readers; nothing follows from it."""

    argv: list[str]
    commit: str | None


class SegmentCommit(Strict):
    """One sealed segment of a phase's records (`cask_eval.records.segments`): `count` records, and their Merkle root by
    themselves."""

    count: Positive
    merkle_root: Digest


class RecordsCommit(Strict):
    """`count` records whose Merkle root is `merkle_root`, however they are spread over files; `path` relative to the
    workspace. `segments`: the sealed ones, in their order; what is left lies in the file at `path`. They follow from
    the same records and are there to say where damage is."""

    path: str
    count: Annotated[int, Field(ge=0)]
    merkle_root: Digest
    segments: list[SegmentCommit] = Field(default=[], exclude_if=lambda value: not value)


class ScheduleLock(Strict):
    """`cask_eval.schedule.Schedule` as registered; the verifier replays it."""

    trigger: str
    budget: Positive
    delta: Positive
    prompt: str
    count_prompt: bool = True
    overflow: str = "refuse"
    recent: Natural = 0
    earliest: Natural = 0
    boundaries: list[Natural] = []
    chains: Annotated[int, Field(ge=1, le=4096)] = 1

    @property
    def prompt_policy(self) -> str:
        """What becomes of the prompt, in words; arms are comparable where it is the same."""
        clipped = self.prompt == "pinned" and self.overflow != "refuse"
        return f"{self.prompt} (the {self.overflow} entries where it fills the budget)" if clipped else self.prompt


class PackingLock(Strict):
    """`cask_eval.footprint.Packing` as registered."""

    bits: Positive
    group: Positive
    residual: Positive


class FootprintLock(Strict):
    """`cask_eval.footprint.Footprint` as registered: what the method holds for one sequence, in bytes."""

    heads: Positive
    head_dim: Positive
    itemsize: Positive
    packing: PackingLock | None = None
    trait_bytes: Natural = 0
    shared_bytes: Natural = 0
    fixed_bytes: Natural = 0


# A fraction, as `cask_eval.decide.budgets.entries` writes it.
Mean = Annotated[str, Field(pattern=r"^\d{1,30}/[1-9]\d{0,10}$")]


# A fraction, as Python prints it.
Exact = Annotated[str, Field(pattern=r"^-?\d{1,30}(/[1-9]\d{0,29})?$")]


class Evaluation(Strict):
    """One step of the search for a budget: the dev trials at `budget` had the mean cache `dev_mean`. They stand in the
    dev records under `cask_eval.protocol.keys.step_config`."""

    budget: Positive
    dev_mean: Mean


class ArmChoice(Strict):
    """One arm of one cell, frozen: method, parameters, schedule at the matched budget b′, footprint, and the dev caches
    that justified the budget. `dev_mean` and `reference_mean` are in full-precision entries per layer and head.
    `searched` lists, in order, what was run to find the budget of a candidate whose cache depends on what it
    generates; one of them is at the schedule's own budget, and its trials count as the configuration's."""

    preset: str
    params: dict[str, Param]
    schedule: ScheduleLock
    footprint: FootprintLock
    dev_mean: Mean
    reference_mean: Mean
    searched: list[Evaluation] = []


class PromptLock(Strict):
    """How the models are asked. `file`: the prompt file's digest (line ends read as LF), None where the protocol names
    none; `tokens`: model → digest of the token ids of all prompts, dev first, in the order of the manifests."""

    file: Digest | None
    tokens: dict[Name, Digest]


class Register(Strict):
    """`task`: the package of the task plug-in, which holds problems and grader; `grader`: the grader's version."""

    protocol_path: str
    protocol_raw: Digest
    protocol_digest: Digest
    protocol: dict[str, Any]
    splits: Annotated[dict[Literal["dev", "heldout"], SplitLock], Field(min_length=2)]
    methods: list[PackageLock]
    models: list[ModelLock]
    environment: Environment
    warnings: list[str]
    task: PackageLock | None = None
    grader: str | None = None
    prompt: PromptLock | None = None
    invocation: Invocation | None = Field(default=None, exclude_if=lambda value: value is None)


class Change(Strict):
    """One difference between two registrations: where (a field of the protocol, or after `locked.` one of the other
    locks), and both values as canonical JSON, "" where there was none."""

    field: str
    before: str
    after: str


class Amend(Register):
    """A new protocol in the place of the registered one, and why. Until the held-out split is consumed everything is
    locked anew, this event's hash stands for the registration, and the dev split is run again. After that the trials
    stay what they are: only what the analysis reads may change, the other locks are repeated, and whatever follows is
    exploratory. `replaces`: hash of the event whose protocol it replaces. `changes` follow from both events. `dev`: the
    dev records of a run that was not finished when it was put aside."""

    reason: Annotated[str, Field(min_length=10, max_length=4000)]
    replaces: Digest
    changes: Annotated[list[Change], Field(min_length=1)]
    dev: RecordsCommit | None = Field(default=None, exclude_if=lambda value: value is None)


class Lost(Strict):
    """What died under the run that writes the event, on a cluster: `workers` of it, with `trials` that were begun and
    had to be begun again; `attempts` is the most that one of them took. Nothing follows from it: a trial that is begun
    again leaves the same record."""

    workers: Positive
    trials: Natural
    attempts: Positive


class DevRun(Strict):
    """All dev trials are done. `records` commits to those of every configuration and of every search. `matched` maps
    cell → arm → configuration → the arm as it was run; arm and configuration are named as in `Record` (the baseline's
    configuration is "")."""

    records: RecordsCommit
    matched: dict[str, dict[str, dict[str, ArmChoice]]]
    methods: list[PackageLock]
    invocation: Invocation | None = Field(default=None, exclude_if=lambda value: value is None)
    lost: Lost | None = Field(default=None, exclude_if=lambda value: value is None)


class Select(Strict):
    """The registered rules' outcome. `scores` maps cell → arm → configuration → exact dev score "p/q", the baseline
    included; `chosen` maps cell → candidate → configuration; `gains` maps candidate → exact mean gain over the
    baseline "p/q". `survivors` are the candidates that are confirmed, in the protocol's order; `arms` maps cell → arm →
    choice for them, the baseline and the controls."""

    rule: str
    scores: dict[str, dict[str, dict[str, Exact]]]
    chosen: dict[str, dict[str, str]]
    gains: dict[str, Exact]
    survivors: list[str]
    arms: dict[str, dict[str, ArmChoice]]


class Consume(Strict):
    """Written before the first held-out prompt is run. `expected` trials, whose keys have Merkle root `keys`.
    `exploratory`: nothing that comes of them is confirmatory."""

    expected: Annotated[int, Field(ge=1)]
    keys: Digest
    environment: Environment
    exploratory: bool = False
    invocation: Invocation | None = Field(default=None, exclude_if=lambda value: value is None)


class Records(Strict):
    """The end of one session inside the attempt; `complete` is false when the next session found it interrupted.
    Methods and environment are those of the session that writes the event; `lost` is left out where its trials all ran
    at the first attempt, and where they were run by another session."""

    attempt: Literal[1] = 1
    session: Annotated[int, Field(ge=1)]
    complete: bool
    records: RecordsCommit
    methods: list[PackageLock] | None = None
    environment: Environment | None = None
    invocation: Invocation | None = Field(default=None, exclude_if=lambda value: value is None)
    lost: Lost | None = Field(default=None, exclude_if=lambda value: value is None)


class Close(Strict):
    """Nothing more will be added. Methods, task and environment are digested again, at the end of the run."""

    records: RecordsCommit
    methods: list[PackageLock]
    environment: Environment
    task: PackageLock | None = None
    invocation: Invocation | None = Field(default=None, exclude_if=lambda value: value is None)


class Analysis(Strict):
    """The decision. `digest` covers the whole analysis document, which `verify` derives again."""

    digest: Digest
    branch: str
    decision: str


class Anchor(Strict):
    """A third party's word on when an earlier event of the study existed: `token` is an RFC 3161 TimeStampToken (DER in
    base64) whose message imprint is that event's `hash`. `gen_time` and `tsa` repeat what the token says, for readers;
    `beacon` is the digest of its signature, for seeds. `cask_eval.anchor` compares them."""

    seq: Natural
    hash: Digest
    tsa: Annotated[str, Field(min_length=1, max_length=1000)]
    gen_time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    beacon: Digest
    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=88_000)]


PAYLOADS: dict[str, type[Strict]] = {
    "register": Register,
    "amend": Amend,
    "dev_run": DevRun,
    "select": Select,
    "consume": Consume,
    "records": Records,
    "close": Close,
    "analysis": Analysis,
    "anchor": Anchor,
}


class Event(Strict):
    """One line of the ledger. `hash` is the digest of the event without `hash`; `prev` is the line before's."""

    seq: Annotated[int, Field(ge=0)]
    prev: Digest
    study: Name
    event: Kind
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    payload: dict[str, Any]
    hash: Digest
