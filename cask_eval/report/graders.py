"""Where math-verify alone would have decided otherwise than the study's grader, output by output.

It is worked out when the report is written, from the outputs in the records and the problems, where these are at hand.
Records keep nothing of it and nothing was decided by it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cask_eval.records.model import Record
from cask_eval.report import format as fmt

NOTE = (
    "How often math-verify alone, with its own defaults on the whole output, would have decided otherwise than the "
    "study's grader; worked out when this page was written, and nothing was decided by it."
)


@dataclass(frozen=True)
class Difference:
    """The problems of one arm in one cell on which the two differ, by what the study's grader says; a problem is named
    once for each of its samples. undecided: outputs on which math-verify passed a limit."""

    cell: str
    arm: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    undecided: int

    @property
    def count(self) -> str:
        """For the table of arms."""
        shown = f"{len(self.right) + len(self.wrong):,}"
        return f"{shown} ({self.undecided:,} open)" if self.undecided else shown


@dataclass(frozen=True)
class Differences:
    """Differences by (cell, arm), as printed. `absent` says why there are none where a task has such a second opinion;
    both are empty where it has none."""

    of: Mapping[tuple[str, str], Difference] = field(default_factory=dict)
    absent: str = ""

    def __bool__(self) -> bool:
        return bool(self.of or self.absent)

    def count(self, cell: str, arm: str) -> str:
        found = self.of.get((cell, arm))
        return found.count if found else fmt.DASH


def compare(
    records: Iterable[Record], task: Any, problems: Mapping[str, Any], say: Callable[[str], None] = lambda text: None
) -> Differences:
    """The differences over the held-out records. `task` is the plug-in; it has a second opinion where it defines
    ``plain(problem, output)``: True, False, or None where none came about. `problems` are the held-out ones by id;
    without them nothing is worked out. Outputs of failed trials were never graded and are left out."""
    plain = getattr(task, "plain", None)
    if plain is None:
        return Differences()
    graded = [r for r in records if r.phase == "heldout" and r.status != "failed"]
    if missing := sum(r.problem not in problems for r in graded):
        return Differences(absent=f"the texts of {missing:,} of {len(graded):,} trials' problems are not at hand")
    if len(graded) > 1_000:
        say(f"asking math-verify about {len(graded):,} outputs")
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        verdicts = list(threads.map(lambda r: plain(problems[r.problem], r.output), graded))
    groups: dict[tuple[str, str], list[tuple[Record, bool | None]]] = {}
    for record, verdict in zip(graded, verdicts, strict=True):
        groups.setdefault((fmt.one_line(record.cell), fmt.one_line(record.arm)), []).append((record, verdict))
    return Differences({where: _difference(*where, rows) for where, rows in groups.items()})


def _difference(cell: str, arm: str, rows: Sequence[tuple[Record, bool | None]]) -> Difference:
    differ = [r for r, v in rows if v is not None and v != r.grade.correct]
    right = tuple(fmt.one_line(r.problem) for r in differ if r.grade.correct)
    wrong = tuple(fmt.one_line(r.problem) for r in differ if not r.grade.correct)
    return Difference(cell, arm, right, wrong, sum(v is None for _, v in rows))
