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
MAX_WIDTH = 400


class Note(str):
    """Worth saying, no fault."""


class Skip(str):
    """Could not be checked, and why. A check with a skip and no fault is `not_checked`."""


@dataclass(frozen=True)
class Result:
    """What one check found. `claimed` is false for ids that this version does not check at all."""

    id: str
    title: str
    status: Outcome
    details: list[str]
    claimed: bool = True

    @property
    def line(self) -> str:
        word = {"pass": "ok", "fail": "FAIL", "not_checked": "not checked"}[self.status]
        first = f": {self.details[0]}" if self.details else ""
        more = f" (+{len(self.details) - 1} more)" if len(self.details) > 1 and self.status == "fail" else ""
        return f"{self.id}  {word:<11}  {self.title}{first}{more}"

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "title": self.title, "status": self.status, "details": self.details,
                "claimed": self.claimed}  # fmt: skip


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
            except Exception as error:  # hostile evidence must not end the verification of the rest
                said.append(f"the evidence cannot be read: {type(error).__name__}: {error}")
            faults = [s for s in said if not isinstance(s, (Note, Skip))]
            skips = [s for s in said if isinstance(s, Skip)]
            status: Outcome = "fail" if faults else "not_checked" if skips else "pass"
            return Result(id, title, status, list(_short([*faults, *skips, *(s for s in said if isinstance(s, Note))])))

        return Check(id, title, run)

    return make


def _short(lines: list[str]) -> Iterator[str]:
    """The first lines, printable: evidence is written by others and may hold control characters."""
    for line in lines[:MAX_DETAILS]:
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        yield text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…"
    if len(lines) > MAX_DETAILS:
        yield f"… and {len(lines) - MAX_DETAILS} more"
