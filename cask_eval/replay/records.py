"""What a folder of replays holds: its settings, its references and a record for every trial. Data only, no torch.

    replay.json       settings, locked by the first run, and what ran it
    references.jsonl  what the model said with its full cache, as token ids
    records.jsonl     one record for every arm, budget, problem and sample
    tokens/           numbers per token, one safetensors file for each arm and budget (`cask_eval.records.tokens`)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from cask_eval import jsonl
from cask_eval.canonical import canonical, digest, loads
from cask_eval.errors import DriftError, RecordError
from cask_eval.fields import Digest, Name, Param, Strict, first_fault
from cask_eval.ledger.events import Environment
from cask_eval.records.model import (
    Count,
    Decimal9,
    FidelityRecord,
    RegionsRecord,
    ResidencyRecord,
    StagesRecord,
)
from cask_eval.stages import Regime

CEILING = "ceiling"
"""The arm that replays through the full cache: how closely a replay can follow at all."""

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Arm(Strict):
    """One method with its parameters."""

    name: Name
    preset: Name
    params: dict[str, Param]


class Settings(Strict):
    """What decides over the numbers of a folder; a run with other settings is refused. `prompts` is the digest of all
    prompts as token ids, in their order. `block_bytes` bounds the full-cache logits held at once, and so which problems
    are replayed together."""

    model: str
    revision: str | None
    dtype: str
    model_digest: Digest
    model_files: dict[str, Digest]
    calibration: Digest | None
    source: str
    prompts: Digest
    problems: Positive
    samples: Positive
    max_new_tokens: Positive
    temperature: str
    top_p: str
    stop_ids: list[Count]
    seed: Count
    arms: list[Arm]
    budgets: list[Positive]
    slots: Positive
    block_bytes: Positive
    environment: Environment
    methods: dict[str, Digest]


class Folder(Strict):
    """replay.json. argv: the command that made the folder, paths by their public names. commit: the toolkit's commit,
    where it runs from a git work tree."""

    record: Literal["cask-eval/replay/1"]
    settings: Settings
    argv: list[str]
    commit: str | None


class Reference(Strict):
    """What the model said with its full cache, and how sure it was of it: `top1`, `nll` and `entropy` (nats) are means
    over the tokens under the full cache's own distributions. The prompt is not stored, only the digest of its ids."""

    record: Literal["cask-eval/replay-reference/1"] = "cask-eval/replay-reference/1"
    problem: str
    sample: Count
    seed: Seed
    model: Digest
    prompt: Digest
    prompt_tokens: Positive
    output_ids: Annotated[list[Count], Field(min_length=1)]
    stopped: bool
    max_new_tokens: Positive
    temperature: str
    top_p: str
    top1: Decimal9
    nll: Decimal9
    entropy: Decimal9
    first_mismatch: Count

    @property
    def key(self) -> tuple[str, int]:
        return self.problem, self.sample


class CacheRecord(Strict):
    """A trial's cache, per layer and KV head, chains added up. mean, peak: resident bytes at the attention reads, in
    full-precision entries. terminal: entries after the last token, `evicted` those that events took away.
    terminal_saved_ratio: 1 − terminal / tokens that these entries stand for, which is what merging saved;
    reference_terminal_saved_ratio: 1 − terminal / tokens read, which is what the method saved."""

    mean: Decimal9
    peak: Decimal9
    terminal: Positive
    evicted: Count
    terminal_saved_ratio: Decimal9
    reference_terminal_saved_ratio: Decimal9


class Trial(Strict):
    """One replay. `reference` is the digest of the reference's line. perplexity: e^nll. strict_prefix_ratio:
    first_mismatch / tokens. chains: the accounts of the chains of a method that runs several side by side."""

    record: Literal["cask-eval/replay-trial/1"] = "cask-eval/replay-trial/1"
    arm: Name
    budget: Count
    problem: str
    sample: Count
    reference: Digest
    prompt_tokens: Positive
    tokens: Positive
    fidelity: FidelityRecord
    perplexity: str
    strict_prefix_ratio: Decimal9
    cache: CacheRecord
    stages: StagesRecord
    regime: Regime
    residency: ResidencyRecord
    chains: list[ResidencyRecord]
    kept_min: Count | None
    kept_max: Count | None
    regions: RegionsRecord
    measures: dict[str, str]

    @property
    def key(self) -> tuple[str, int, str, int]:
        return self.arm, self.budget, self.problem, self.sample


Line = TypeVar("Line", Reference, Trial)


def line_of(record: Reference | Trial) -> bytes:
    """The record as it stands in a file, without the line end."""
    return canonical(record.model_dump(mode="json"))


def digest_of(reference: Reference) -> str:
    return digest(reference.model_dump(mode="json"))


def read(path: Path, kind: type[Line]) -> Iterator[Line]:
    """The records of a file in their order; none of one that is not there. Raises RecordError naming the line that is
    no such record, repeats a key or is incomplete."""
    found, seen = jsonl.read_either(path), set()
    for number, line in enumerate(found.lines, 1):
        try:
            record = kind.model_validate(loads(line))
        except ValidationError as error:
            raise RecordError(f"{path.name}:{number}: {first_fault(error, 'line', value=True)}") from None
        except ValueError as error:
            raise RecordError(f"{path.name}:{number}: not strict JSON: {error}") from None
        if record.key in seen:
            raise RecordError(f"{path.name}:{number}: {record.key} is there twice; keep one")
        seen.add(record.key)
        yield record
    if found.torn:
        raise RecordError(f"{path.name}: the last line is incomplete; run `cask-eval replay` again, it resumes there")


def read_folder(path: Path) -> Folder | None:
    """replay.json of a folder; None where there is none. Raises RecordError."""
    try:
        return Folder.model_validate(loads((path / "replay.json").read_bytes()))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RecordError(f"replay.json: {first_fault(error, 'file', value=True)}") from None
    except ValueError as error:
        raise RecordError(f"replay.json: not strict JSON: {error}") from None


def write_folder(path: Path, folder: Folder) -> None:
    data = json.dumps(folder.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    jsonl.replace(path / "replay.json", data.encode())


def check_settings(name: str, locked: Settings, given: Settings) -> None:
    """Raises DriftError naming the first setting that differs, both values and the remedy."""
    if fault := _difference("", locked.model_dump(mode="json"), given.model_dump(mode="json")):
        field, was, now = fault
        raise DriftError(
            f"{name}: {field} is {_short(now)}, but the folder was made with {_short(was)}; give that, or name another "
            "folder with --out"
        )


def _difference(field: str, a: Any, b: Any) -> tuple[str, Any, Any] | None:
    if isinstance(a, dict) and isinstance(b, dict):
        names = [k for k in {**a, **b} if a.get(k) != b.get(k)]
        return _difference(f"{field}.{names[0]}".lstrip("."), a.get(names[0]), b.get(names[0])) if names else None
    return None if a == b else (field, a, b)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "…"
