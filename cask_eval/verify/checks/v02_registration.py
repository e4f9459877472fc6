from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V02", "one registration, never replaced")
def v02(e: Evidence) -> Iterator[str]:
    """One register event per study; an amended study cannot call itself confirmatory."""
    events = e.of_kind("register")
    if not events:
        yield f"the ledger has no register event of study {e.study!r}"
        return
    for event in events[1:]:
        yield f"line {event.seq + 1} registers the study again, at {event.time}"
    if e.own[0].event != "register":
        yield f"line {e.own[0].seq + 1} is a {e.own[0].event} event before the registration"
    if e.document and e.document.label == "confirmatory" and e.label != "confirmatory":
        yield "the study was amended, but its analysis is labelled confirmatory"
    if e.document and e.document.registration != e.registration:
        yield "the analysis names another registration"
