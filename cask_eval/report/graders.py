"""Where math-verify alone would have decided otherwise than the study's grader, output by output.

It is worked out when the report is written, from the outputs in the records and the problems, where these are at hand.
Records keep nothing of it and nothing was decided by it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cask_eval.records.model import Record
from cask_eval.report import format as fmt

NOTE = (
    "How often math-verify alone, with its own defaults on the whole output, would have decided otherwise than the "
    "study's grader; worked out when this page was written, and nothing was decided by it."
)

# Outputs that are held at once while they are asked about; and so many are worth a word.
_AT_ONCE, _MANY = 256, 1_000


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
    groups: dict[tuple[str, str], _Tally] = {}
    graded = missing = 0
    trials = (r for r in records if r.phase == "heldout" and r.status != "failed")
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        while some := list(itertools.islice(trials, _AT_ONCE)):
            graded += len(some)
            missing += sum(r.problem not in problems for r in some)
            if missing:  # nothing is worked out, and how many there are is said
                continue
            if graded - len(some) < _MANY < graded:
                say(f"asking math-verify about more than {_MANY:,} outputs")
            verdicts = threads.map(lambda r: plain(problems[r.problem], r.output), some)
            for record, verdict in zip(some, verdicts, strict=True):
                groups.setdefault((fmt.one_line(record.cell), fmt.one_line(record.arm)), _Tally()).add(record, verdict)
    if missing:
        return Differences(absent=f"the texts of {missing:,} of {graded:,} trials' problems are not at hand")
    return Differences({where: tally.difference(*where) for where, tally in groups.items()})


class _Tally:
    """What differs in one arm in one cell."""

    def __init__(self) -> None:
        self.right: list[str] = []
        self.wrong: list[str] = []
        self.undecided = 0

    def add(self, r: Record, verdict: bool | None) -> None:
        if verdict is None:
            self.undecided += 1
        elif verdict != r.grade.correct:
            (self.right if r.grade.correct else self.wrong).append(fmt.one_line(r.problem))

    def difference(self, cell: str, arm: str) -> Difference:
        return Difference(cell, arm, tuple(self.right), tuple(self.wrong), self.undecided)
