"""What a check is: a pure function from the evidence to a result.

A check's body is a generator: every text it yields is a fault, except that a `Note` is only said and a `Skip` says
what could not be looked at. A body that raises has found evidence it cannot read, which is a fault too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cask_eval.verify.evidence import Evidence

Outcome = Literal["pass", "fail", "not_checked"]

MAX_DETAILS = 12
MAX_SAID = 10_000
MAX_WIDTH = 400


class Note(str):
    """Worth saying, no fault."""


class Skip(str):
    """Could not be checked, and why. A check with a skip and no fault is `not_checked`."""


class Open(Skip):
    """There was nothing to check, and the study does not say there is: its evidence level tells what that is worth."""


@dataclass(frozen=True)
class Result:
    """What one check found. `claimed` is false where the study does not ask to be checked for it."""

    id: str
    title: str
    status: Outcome
    details: list[str]
    claimed: bool = True

    @property
    def line(self) -> str:
        word = {"pass": "ok", "fail": "FAIL", "not_checked": "not checked"}[self.status]
        first = f": {self.details[0]}" if self.details else ""
        more = f" (+{len(self.details) - 1} more)" if len(self.details) > 1 else ""
        return f"{self.id}  {word:<11}  {self.title}{first}{more}"

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "title": self.title, "status": self.status, "details": self.details,
                "claimed": self.claimed}  # fmt: skip


@dataclass(frozen=True)
class Rerun(Result):
    """What executing trials again found. `enough`: so many that the study counts as run by the reviewer."""

    enough: bool = False

    @classmethod
    def of(cls, status: Outcome, details: list[str], enough: bool = False) -> Rerun:
        return cls("RUN", "trials executed again", status, list(_short(details)), True, enough)


@dataclass(frozen=True)
class Check:
    id: str
    title: str
    run: Callable[[Evidence], Result]


def check(id: str, title: str, *needs: str) -> Callable[[Callable[[Evidence], Iterable[str]]], Check]:
    """Make a check of a generator. `needs` names what the evidence must hold (attributes that are None when absent);
    where it is absent nothing is claimed."""

    def make(body: Callable[[Evidence], Iterable[str]]) -> Check:
        def run(evidence: Evidence) -> Result:
            absent = [text for name in needs if getattr(evidence, name) is None for text in [evidence.why(name)]]
            if absent:
                return Result(id, title, "not_checked", list(_short(absent)))
            said: list[str] = []
            try:
                for text in body(evidence):
                    said.append(text)
                    if len(said) >= MAX_SAID:
                        said.append(f"after {MAX_SAID} findings the rest was not looked at")
                        break
            except Exception as error:  # hostile evidence must not end the verification of the rest
                said.append(f"the evidence cannot be read: {type(error).__name__}: {error}")
            faults = [s for s in said if not isinstance(s, (Note, Skip))]
            skips = [s for s in said if isinstance(s, Skip)]
            status: Outcome = "fail" if faults else "not_checked" if skips else "pass"
            lines = _short([*faults, *skips, *(s for s in said if isinstance(s, Note))])
            claimed = not skips or not all(isinstance(s, Open) for s in skips)
            return Result(id, title, status, list(lines), claimed)

        return Check(id, title, run)

    return make


def printable(line: str) -> str:
    """One line that a terminal shows as it is: evidence is written by others and may hold control characters."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…"


def _short(lines: list[str]) -> Iterator[str]:
    """The first lines, printable."""
    yield from map(printable, lines[:MAX_DETAILS])
    if len(lines) > MAX_DETAILS:
        yield f"… and {len(lines) - MAX_DETAILS} more"
