"""Tasks whose problems stand in rows of a file and whose outputs `cask_eval.grading` grades."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cask_eval import grading
from cask_eval.tasks import Grade, Problem, data, part

RULES = tuple(grading.ExtractionRule)


@dataclass(frozen=True)
class Question(Problem):
    """A problem that says how its answer is found: `rule` names where it may stand (docs/GRADING.md), `integers` that
    only a whole number can be right."""

    rule: str = "boxed"
    integers: bool = False


def grade(problem: Problem, output: str) -> Grade:
    """The grader's verdict. One pool of workers serves the whole process; it ends with it."""
    rule, integers = getattr(problem, "rule", "boxed"), getattr(problem, "integers", False)
    verdict = grading.shared().grade(problem.answer, output, rule=rule, integers=integers)
    return Grade(verdict.correct, verdict.extracted, verdict.how, grading.VERSION)


def plain(problem: Problem, output: str) -> bool | None:
    """What math-verify alone would say; None where it passed a limit. Nothing is decided by it."""
    return grading.shared().plain(problem.answer, output)


def same(a: str, b: str) -> bool:
    """Whether two extracted answers are one, for a vote."""
    return grading.shared().same(a, b)


def rule_of(params: Mapping[str, Any]) -> str:
    """The extraction rule that `params` asks for. Raises ValueError."""
    rule = params.get("rule", "boxed")
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; use one of {', '.join(RULES)}")
    return rule


@dataclass(frozen=True)
class Rows:
    """A public data set. `defaults` are the parameters of its manifests' `source`; `question` makes the fields of a
    `Problem` of a row and its number; `origin` says where the rows came from that the manifests were frozen from."""

    defaults: Mapping[str, Any]
    question: Callable[[data.Row, int, Mapping[str, Any]], dict[str, str]]
    origin: str = ""
    integers: bool = False
    free: tuple[str, ...] = (*part.FIELDS, "rule", "file", "sha256", "hub", "revision", "hub_file")

    GRADER = grading.VERSION

    def describe(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """(`source` in full, the rule in words) for a manifest."""
        source = self._full(params)
        if source["part"] == "all":
            source = {k: v for k, v in source.items() if k not in ("dev", "seed")}
        return source, f"{self.origin} {part.rule(source)}".strip()

    def problems(self, params: Mapping[str, Any]) -> list[Problem]:
        """The problems that `params` describe. Raises ValueError, OSError."""
        source = self._full(params)
        rule = rule_of(source)
        made: list[Problem] = []
        for number, row in enumerate(data.rows(source)):
            try:
                made.append(Question(**self.question(row, number, source), rule=rule, integers=self.integers))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"row {number + 1}: {_said(error)}") from None
        return part.cut(made, source)

    def grade(self, problem: Problem, output: str) -> Grade:
        return grade(problem, output)

    def plain(self, problem: Problem, output: str) -> bool | None:
        return plain(problem, output)

    def same(self, a: str, b: str) -> bool:
        return same(a, b)

    def _full(self, params: Mapping[str, Any]) -> dict[str, Any]:
        for name in params:
            if name not in self.free and name not in self.defaults:
                raise ValueError(f"{name} is no parameter of this task; use {', '.join(self.free)}")
        if ("file" in params or "hub" in params) and "sha256" not in params:
            # Another place than the one that was frozen: what the defaults say of the file is no longer so.
            own = {k: v for k, v in self.defaults.items() if k not in ("file", "sha256", "hub", "revision", "hub_file")}
            return own | dict(params)
        return {**self.defaults, **params}


def text(row: data.Row, name: str) -> str:
    """A text of a row. Raises ValueError."""
    value = row[name]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {str(value)[:40]!r}; a text is needed")
    return value


def _said(error: Exception) -> str:
    return f"there is no field {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
