"""Outputs to be compared, from files of rows or from a study's records, and which of them belong together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cask_eval.errors import CaskError
from cask_eval.records.model import Record

__all__ = ["Joined", "Output", "join", "of_record", "read"]

STATUSES = ("finished", "truncated", "failed")
_SHOWN = 5


@dataclass(frozen=True)
class Output:
    """One output. key: what it is joined by, the problem first. ids: the model's tokens, None where they are unknown.
    status: None where it is unknown. gold: the reference answer that came with it. extracted, correct: what the study's
    grader said. where: its place, for messages."""

    key: tuple[str, ...]
    text: str
    where: str
    status: str | None = None
    ids: tuple[int, ...] | None = None
    gold: str | None = None
    extracted: str | None = None
    correct: bool | None = None

    @property
    def problem(self) -> str:
        return self.key[0]


@dataclass(frozen=True)
class Joined:
    """pairs: (candidate, reference), in the order of the reference. candidate_only, reference_only: outputs whose
    partner is missing or failed."""

    pairs: tuple[tuple[Output, Output], ...]
    candidate_only: tuple[Output, ...]
    reference_only: tuple[Output, ...]


def read(path: Path, by: Sequence[str], output: str = "output") -> list[Output]:
    """The rows of a JSONL file. `by` are the fields that they are joined by, the problem first; of these only the first
    must be there. `output` is the field with the text; status, output_ids and gold are read where they are there.
    Records of a study are such rows. Raises CaskError with the line and the field."""
    out = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CaskError(f"{where}: is no JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise CaskError(f"{where}: is {type(row).__name__}; write an object with the fields {by[0]} and {output}")
        out.append(_output(row, by, output, where))
    if not out:
        raise CaskError(f"{path}: has no rows; each line is an object with the fields {by[0]} and {output}")
    return out


def of_record(r: Record, file: str) -> Output:
    """A study's record as an output of its arm in its cell, joined by problem and sample: what is compared of it is a
    small part. `file`: its name, for messages."""
    return Output(
        key=(r.problem, str(r.sample)),
        text=r.output,
        where=f"{file} {r.cell}/{r.arm}, {r.problem}/{r.sample}",
        status=r.status,
        ids=tuple(r.output_ids),
        extracted=r.grade.extracted,
        correct=r.grade.correct,
    )


def join(candidate: Sequence[Output], reference: Sequence[Output], *, drop: bool = False) -> Joined:
    """Who is compared with whom. A trial that failed has no output, so its partner has none to be compared with.

    Raises CaskError when a key occurs twice in one of them, and, unless `drop`, when an output has no partner; both are
    named."""
    sides = []
    for name, outputs in (("candidate", candidate), ("reference", reference)):
        seen: dict[tuple[str, ...], Output] = {}
        for one in outputs:
            if one.key in seen:
                raise CaskError(
                    f"{one.where}: {'/'.join(one.key)} is already at {seen[one.key].where}; keep one, or join by the "
                    f"field that tells them apart (--by), since one output of the {name} has one partner"
                )
            seen[one.key] = one
        sides.append({key: one for key, one in seen.items() if one.status != "failed"})
    ours, theirs = sides
    pairs = tuple((ours[key], one) for key, one in theirs.items() if key in ours)
    alone = tuple(one for key, one in ours.items() if key not in theirs)
    waiting = tuple(one for key, one in theirs.items() if key not in ours)
    if (alone or waiting) and not drop:
        raise CaskError(
            "; ".join(
                f"{len(found)} outputs of the {name} have no partner ({_named(found)})"
                for name, found in (("candidate", alone), ("reference", waiting))
                if found
            )
            + "; complete the files, or state with --missing drop that they are left out"
        )
    if not pairs:
        raise CaskError("no output of the candidate has a partner in the reference; check that both were joined by "
                        "the same fields (--by)")  # fmt: skip
    return Joined(pairs, alone, waiting)


def _named(outputs: Sequence[Output]) -> str:
    names = ", ".join("/".join(one.key) for one in outputs[:_SHOWN])
    return names if len(outputs) <= _SHOWN else f"{names} and {len(outputs) - _SHOWN} more"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CaskError(f"{path}: byte {error.start} is not UTF-8; write the file in UTF-8") from None


def _output(row: dict[str, Any], by: Sequence[str], output: str, where: str) -> Output:
    text = row.get(output)
    if not isinstance(text, str):
        raise CaskError(f"{where}: {output} is {str(text)[:40]!r}; give a text, or name its field with --output-field")
    if row.get(by[0]) is None:
        raise CaskError(f"{where}: there is no field {by[0]!r}; it has {', '.join(row)}; name one with --by")
    key = []
    for name in by:
        value = row.get(name, "")
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise CaskError(f"{where}: {name} is {str(value)[:40]!r}; rows are joined by texts and whole numbers")
        key.append(str(value))
    status, gold, ids = row.get("status"), row.get("gold"), row.get("output_ids")
    if status is not None and status not in STATUSES:
        raise CaskError(f"{where}: status is {str(status)[:40]!r}; use one of {', '.join(STATUSES)} or leave it out")
    if gold is not None and not isinstance(gold, str):
        raise CaskError(f"{where}: gold is {str(gold)[:40]!r}; give the reference answer as a text or leave it out")
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise CaskError(f"{where}: output_ids is {str(ids)[:40]!r}; give a list of whole numbers or leave it out")
    return Output(tuple(key), text, where, status, None if ids is None else tuple(ids), gold)
