"""How outputs are read as answers and scores: by rule, by a task's own grader, or as a study's grader has done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cask_eval import grading
from cask_eval.bridge.measures import Scale
from cask_eval.bridge.rows import Output
from cask_eval.errors import CaskError, SplitError
from cask_eval.splits.check import check_problems
from cask_eval.splits.model import Manifest
from cask_eval.tasks import Grade, Problem, registry

__all__ = ["by_rule", "by_study", "by_task", "problems_of"]


def by_rule(rule: str) -> Scale:
    """Answers are found by an extraction rule and compared by `cask_eval.grading`, also with the reference answers that
    rows carry."""

    def answer(one: Output) -> str | None:
        return grading.extract(one.text, rule).text

    def same(ours: Output, theirs: Output) -> bool | None:
        a, b = answer(ours), answer(theirs)
        return None if b is None else a is not None and (a == b or grading.shared().same(b, a))

    def right(one: Output) -> bool | None:
        return None if one.gold is None else grading.shared().grade(one.gold, one.text, rule=rule).correct

    return Scale(same, lambda one: answer(one) is not None, right)


def by_task(task: Any, problems: Mapping[str, Problem]) -> Scale:
    """Answers as the task's grader reads and judges them, equal as the task says they are; the score is the task's own
    metric (``score(problem, output)``) where it has one. Raises CaskError at an output whose problem is none of
    `problems`."""

    def problem(one: Output) -> Problem:
        if one.problem not in problems:
            raise CaskError(f"{one.where}: problem {one.problem!r} is not in the split; name the split it is from")
        return problems[one.problem]

    def graded(one: Output) -> Grade:
        return task.grade(problem(one), one.text)

    own = getattr(task, "score", None)
    metrics = sorted({str(getattr(p, "metric", "")) for p in problems.values()} - {""}) if own else []
    return Scale(
        same=_same(task, lambda one: graded(one).extracted),
        answered=lambda one: graded(one).extracted is not None,
        right=lambda one: graded(one).correct,
        score=(lambda one: own(problem(one), one.text)) if own else None,
        metric=", ".join(metrics),
    )


def by_study(task: Any) -> Scale:
    """As the study's grader has read and judged the outputs; for where the problems' texts are not at hand."""

    return Scale(
        same=_same(task, lambda one: one.extracted),
        answered=lambda one: one.extracted is not None,
        right=lambda one: one.correct,
    )


def problems_of(manifest: Manifest) -> tuple[Any, dict[str, Problem]]:
    """(the split's task, its problems by id). Raises SplitError when they cannot be made or are not those that were
    frozen."""
    task = registry.load(manifest.task)
    try:
        found = task.problems(manifest.source)
    except (ValueError, TypeError, LookupError, OSError) as error:
        raise SplitError(f"split {manifest.name!r}: {error}") from None
    if faults := check_problems(manifest, found):
        raise SplitError(f"split {manifest.name!r} is not what is at hand:\n" + "\n".join(faults[:10]))
    return task, {p.id: p for p in found}


def _same(task: Any, extracted: Any) -> Any:
    equal = getattr(task, "same", None) or (lambda a, b: a == b)

    def same(ours: Output, theirs: Output) -> bool | None:
        a, b = extracted(ours), extracted(theirs)
        return None if b is None else a is not None and (a == b or bool(equal(b, a)))

    return same
