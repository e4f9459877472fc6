"""Majority vote over the answers of several chains (self-consistency, https://arxiv.org/abs/2203.11171)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cask_eval.tasks import Grade


def vote(answers: Sequence[str | None], same: Callable[[str, str], bool] = lambda a, b: a == b) -> int:
    """Index of the chain that speaks for the trial: the earliest one of the largest class of equal answers. Ties go to
    the class whose first chain is earliest; a chain without an answer (None) abstains; when all abstain it is chain 0.

    `same` says whether two answers are one; each class is represented by its first member. Raises ValueError without
    chains.
    """
    if not answers:
        raise ValueError("a vote needs at least one chain")
    classes: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        for members in classes:
            if same(answers[members[0]], answer):
                members.append(index)
                break
        else:
            classes.append([index])
    return max(classes, key=len)[0] if classes else 0


def elect(task: Any, grades: Sequence[Grade]) -> int:
    """The `vote` over graded outputs. A task may define ``same(a, b)`` on extracted answers; else they are compared as
    texts."""
    same = getattr(task, "same", None)
    answers = [grade.extracted for grade in grades]
    return vote(answers, same) if same else vote(answers)
