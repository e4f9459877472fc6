"""Tasks: prompts with exact answers, and the graders that read a model's output.

Nothing here imports torch, so a reviewer's machine can regrade records without it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Grade", "Problem"]


@dataclass(frozen=True)
class Problem:
    """One question with its exact answer.

    `id` names the problem for ever (task, version, difficulty, seed, index); `stratum` groups problems
    that a report may break down by, and is empty where a task has no groups.
    """

    id: str
    prompt: str
    answer: str
    stratum: str = ""


@dataclass(frozen=True)
class Grade:
    """What a grader said about one output.

    `extracted` is the answer read from the output, or None when there was none to read; `how` says how it
    was read (or why not); `grader` is the grader's name and version, such as ``chain-exact/1``.
    """

    correct: bool
    extracted: str | None
    how: str
    grader: str
