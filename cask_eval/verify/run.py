"""Verify one study: every check over the evidence, and what the outcome is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cask_eval.decide.model import AnalysisDocument
from cask_eval.errors import FAILED, OK, PARTIAL
from cask_eval.ledger.levels import LEVELS, Level
from cask_eval.verify.check import Rerun, Result, printable
from cask_eval.verify.checks import CHECKS
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.level import level_of
from cask_eval.workspace import Workspace

NOT_PROVEN = """What this does not prove:
- that nobody ran the held-out problems outside the runner before, or threw such runs away;
- that the models wrote these outputs: without running trials again, records that agree with each other pass;
- when anything happened: at level L0 the whole ledger, dates included, could have been written in one go;
- that events at the end of the ledger were not cut off, unless a head or an anchor is compared;
- that report.html and report.md say what analysis.json says: `cask-eval report` writes them again;
- that this was the author's only study of the question."""


@dataclass(frozen=True)
class Outcome:
    """What a study decided, and what that may be called."""

    label: str
    branch: str
    decision: str
    void: bool = False
    """Whether every comparison is void, so that the branch was taken without anything having been decided."""

    @classmethod
    def of(cls, document: AnalysisDocument) -> Outcome:
        return cls(document.label, document.branch, document.decision, document.all_void)

    def __str__(self) -> str:
        void = " (every comparison is void: nothing was decided)" if self.void else ""
        return printable(f"{self.label}, branch {self.branch}: {self.decision}{void}")


@dataclass(frozen=True)
class Verdict:
    """All results, the outcome where it was derived again (V21) and no check fails, and the evidence level reached.
    Exit code: 1 when a check fails; 3 when a claimed check could not be done or the level is below the required one;
    else 0."""

    study: str
    results: list[Result]
    level: Level
    require: Level
    head: str | None = None
    outcome: Outcome | None = None

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if r.status == "fail"]

    @property
    def undone(self) -> list[Result]:
        return [r for r in self.results if r.status == "not_checked" and r.claimed]

    @property
    def exit_code(self) -> int:
        if self.failed:
            return FAILED
        return PARTIAL if self.undone or self.level < self.require else OK

    @property
    def summary(self) -> str:
        if self.failed:
            return f"{self.study}: FAILED {', '.join(r.id for r in self.failed)}"
        again = [r for r in self.undone if isinstance(r, Rerun)]
        others = [r.id for r in self.undone if r not in again]
        gaps = [f"not checked: {', '.join(others)}"] if others else []
        gaps += [f"trials executed again show nothing: {r.details[0]}" for r in again]
        if self.level < self.require:
            gaps.append(f"evidence level {self.level}, required {self.require}")
        found = f"{self.outcome}; nothing found wrong" if self.outcome else "nothing found wrong"
        return f"{self.study}: {found}" + (f"; incomplete ({'; '.join(gaps)})" if gaps else "")

    @property
    def lines(self) -> list[str]:
        """One line per check."""
        return [r.line for r in self.results]

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": "cask-eval/verdict/1",
            "study": self.study,
            "exit_code": self.exit_code,
            "summary": self.summary,
            "outcome": asdict(self.outcome) if self.outcome else None,
            "level": self.level,
            "level_meaning": LEVELS[self.level],
            "require": self.require,
            "head": self.head,
            "checks": [r.to_json() for r in self.results],
            "does_not_prove": NOT_PROVEN.splitlines()[1:],
        }


def verify(
    workspace: Workspace | str | Path,
    study: str,
    *,
    head: str | None = None,
    require: Level = "L2",
    roots: Sequence[Any] | None = None,
    again: Callable[[Evidence], Rerun] | None = None,
) -> Verdict:
    """Check everything that `study` left in the workspace. `head` is a ledger hash that the reviewer noted earlier.
    `roots`: certificates of the time-stamp authorities that the reviewer trusts, by default those that this package
    pins. `again` executes some trials again (`runner.reexecute`).

    Without `again` it reads files only: no network, no torch, and nothing in the evidence is executed. Raises CaskError
    when the study's name is not one.
    """
    if require not in LEVELS:
        raise ValueError(f"require is {require!r}; use one of {', '.join(LEVELS)}")
    place = workspace if isinstance(workspace, Workspace) else Workspace(workspace)
    evidence = Evidence.load(place, study, head, roots)
    return judge(evidence, require, again(evidence) if again else None)


def judge(evidence: Evidence, require: Level = "L2", again: Rerun | None = None) -> Verdict:
    """The verdict on evidence that is loaded already; `again`: what executing trials again gave."""
    results = [check.run(evidence) for check in CHECKS]
    level = level_of(evidence, results, again)
    results += [again] if again else []
    document, outcome = evidence.document, None
    if document and all(r.status == "pass" if r.id == "V21" else r.status != "fail" for r in results):
        outcome = Outcome.of(document)
    return Verdict(evidence.study, results, level, require, evidence.head, outcome)
