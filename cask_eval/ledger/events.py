"""The ledger's events and what each commits to. Data only.

Life of a study: register → dev_run → select → consume → records (one per session) → close → analysis.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cask_eval.fields import Digest, Name, Param, Strict

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
    residency accounts are checked against; `stop_ids` are the tokens that end an output."""

    name: Name
    id: str
    digest: Digest
    files: dict[str, Digest]
    chat_template: Digest | None
    calibration: Digest | None
    layers: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]
    entry_bytes: Annotated[int, Field(ge=1)]
    max_prompt_tokens: Annotated[int, Field(ge=1)]
    stop_ids: list[Annotated[int, Field(ge=0)]]


class Environment(Strict):
    """What ran the study. `packages` maps distribution → version."""

    python: str
    platform: str
    device: str
    cuda: str | None
    driver: str | None
    packages: dict[str, str]
    toolkit: Digest


class RecordsCommit(Strict):
    """`count` record lines whose Merkle root is `merkle_root`; `path` relative to the workspace."""

    path: str
    count: Annotated[int, Field(ge=0)]
    merkle_root: Digest


class ScheduleLock(Strict):
    """`cask_eval.residency.Schedule` as registered; the verifier replays it. `kind` is `length` when the resident
    counts follow from lengths alone, `content` when they depend on what was generated."""

    kind: Literal["length", "content"] = "length"
    trigger: str
    budget: int
    delta: int
    prompt: str


class ArmChoice(Strict):
    """One arm of one cell, frozen: method, parameters, matched budget b′ and the dev caches that justified it.
    `dev_mean` and `reference_mean` are exact fractions "p/q" of entries per layer and head."""

    preset: str
    params: dict[str, Param]
    schedule: ScheduleLock
    dev_mean: str
    reference_mean: str


class Register(Strict):
    protocol_path: str
    protocol_raw: Digest
    protocol_digest: Digest
    protocol: dict[str, Any]
    splits: dict[Literal["dev", "heldout"], SplitLock]
    methods: list[PackageLock]
    models: list[ModelLock]
    environment: Environment
    warnings: list[str]


class DevRun(Strict):
    """All dev trials are done. `matched` maps cell → arm → configuration → the arm as it was run; arm and configuration
    are named as in `Record` (the baseline's configuration is "")."""

    records: RecordsCommit
    matched: dict[str, dict[str, dict[str, ArmChoice]]]
    methods: list[PackageLock]


class Select(Strict):
    """The registered rules' outcome. `scores` maps cell → arm → configuration → exact dev accuracy "p/q", the baseline
    included; `chosen` maps cell → candidate → configuration; `gains` maps candidate → exact mean gain over the
    baseline "p/q". `survivors` are the candidates that are confirmed, in the protocol's order; `arms` maps cell → arm →
    choice for them, the baseline and the controls."""

    rule: str
    scores: dict[str, dict[str, dict[str, str]]]
    chosen: dict[str, dict[str, str]]
    gains: dict[str, str]
    survivors: list[str]
    arms: dict[str, dict[str, ArmChoice]]


class Consume(Strict):
    """Written before the first held-out prompt is run. `expected` trials, whose keys have Merkle root `keys`."""

    expected: Annotated[int, Field(ge=1)]
    keys: Digest
    environment: Environment


class Records(Strict):
    """The end of one session inside the attempt; `complete` is false when the next session found it interrupted."""

    attempt: Literal[1] = 1
    session: Annotated[int, Field(ge=1)]
    complete: bool
    records: RecordsCommit


class Close(Strict):
    """Nothing more will be added. Methods and environment are digested again, at the end of the run."""

    records: RecordsCommit
    methods: list[PackageLock]
    environment: Environment


class Analysis(Strict):
    """The decision. `digest` covers the whole analysis document, which `verify` derives again."""

    digest: Digest
    branch: str
    decision: str


PAYLOADS: dict[str, type[Strict]] = {
    "register": Register,
    "dev_run": DevRun,
    "select": Select,
    "consume": Consume,
    "records": Records,
    "close": Close,
    "analysis": Analysis,
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
