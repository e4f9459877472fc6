"""Finding tasks by name, through the entry-point group ``cask_eval.tasks``.

A task plug-in is any object (usually a module) with ``problems(params) -> list[Problem]``,
``grade(problem, output) -> Grade`` and ``GRADER``, the grader's name and version.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Any

from cask_eval.errors import SplitError

GROUP = "cask_eval.tasks"


def available() -> list[str]:
    return sorted(p.name for p in entry_points(group=GROUP))


def load(name: str) -> Any:
    """The task plug-in. Raises SplitError naming what exists."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()
    near = difflib.get_close_matches(name, available(), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(available()) or 'none installed'}"
    raise SplitError(f"no task is called {name!r}; {hint}")
