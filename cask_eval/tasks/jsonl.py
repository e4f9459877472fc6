"""Anybody's problems: a file of rows, and which of its fields are what.

Parameters: ``file`` (or ``hub``, ``revision``, ``hub_file``); ``id``, ``problem``, ``answer`` and ``strata``, the
names of the fields (``strata`` may be several, with commas between; ``id: ""`` numbers the rows); ``rule`` and
``integers`` (0, 1), how answers are found and what they can be; ``start`` and ``count``, a range of rows; ``part``,
``dev`` and ``seed``, a part of them. The reference may be a whole solution: its box, or what follows ``####``, is what
it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cask_eval import grading
from cask_eval.tasks import Problem, data, graded, part
from cask_eval.tasks.graded import grade, plain, same

__all__ = ["GRADER", "describe", "grade", "plain", "problems", "same"]

GRADER = grading.VERSION

DEFAULTS = {"id": "id", "problem": "problem", "answer": "answer", "strata": "", "rule": "boxed", "integers": 0}
FIELDS = ("file", "hub", "revision", "hub_file", *DEFAULTS, "start", "count", *part.FIELDS)


def describe(params: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(`source` in full, the rule in words) for a manifest."""
    source = _full(params)
    return source, f"{source.get('file') or source.get('hub')}: {part.rule(source)}"


def problems(params: Mapping[str, Any]) -> list[Problem]:
    """The problems that `params` describe. Raises ValueError, OSError."""
    source = _full(params)
    rule, strata = graded.rule_of(source), [name for name in source["strata"].split(",") if name]
    integers = bool(part.whole(source, "integers", 0, 1))
    rows = data.rows(source)
    start = part.whole(source, "start", 0, len(rows)) if "start" in source else 0
    count = part.whole(source, "count", 1, len(rows) - start) if "count" in source else len(rows) - start
    made: list[Problem] = []
    for number, row in enumerate(rows[start : start + count], start):
        try:
            made.append(
                graded.Question(
                    id=graded.text(row, source["id"]) if source["id"] else str(number),
                    prompt=graded.text(row, source["problem"]),
                    answer=graded.text(row, source["answer"]),
                    stratum=" / ".join(graded.text(row, name) for name in strata),
                    rule=rule,
                    integers=integers,
                )
            )
        except KeyError as error:
            has = ", ".join(row)
            raise ValueError(f"row {number + 1}: there is no field {error.args[0]!r}; it has {has}") from None
        except ValueError as error:
            raise ValueError(f"row {number + 1}: {error}") from None
    return part.cut(made, source)


def _full(params: Mapping[str, Any]) -> dict[str, Any]:
    for name in params:
        if name not in FIELDS:
            raise ValueError(f"{name} is no parameter of the jsonl task; use {', '.join(FIELDS)}")
    source = {**DEFAULTS, **params}
    for name in ("id", "problem", "answer", "strata"):
        if not isinstance(source[name], str):
            raise ValueError(f"{name} is {source[name]!r}; give the name of a field")
    return source
