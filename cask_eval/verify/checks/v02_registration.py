from __future__ import annotations

from collections.abc import Iterator

from cask_eval.canonical import digest
from cask_eval.ledger.amend import changes, forbidden
from cask_eval.ledger.events import Amend, Register
from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence


@check("V02", "one registration; amendments in the open")
def v02(e: Evidence) -> Iterator[str]:
    """One register event per study. An amendment says truly what it changes; one that comes after the held-out split
    was consumed changes nothing that a trial depends on, and makes the study exploratory."""
    events = e.of_kind("register")
    if not events:
        yield f"the ledger has no register event of study {e.study!r}"
        return
    for event in events[1:]:
        yield f"line {event.seq + 1} registers the study again, at {event.time}"
    if e.own[0].event != "register":
        yield f"line {e.own[0].seq + 1} is a {e.own[0].event} event before the registration"
    yield from _amendments(e)
    if e.document and e.document.label == "confirmatory" and e.label != "confirmatory":
        yield "the study is exploratory, but its analysis is labelled confirmatory"
    if e.document and e.document.registration != e.registration:
        yield "the analysis names another registration"


def _amendments(e: Evidence) -> Iterator[str]:
    late = {event.seq for event, _ in e.state.late}
    before = e.of_kind("register")[0]
    held: Register = Register.model_validate(before.payload)
    for event, amend in e.state.amendments:
        line = f"line {event.seq + 1}"
        if amend.replaces != before.hash:
            yield f"{line} amends another event than the one before it"
        if digest(amend.protocol) != amend.protocol_digest:
            yield f"{line}: the protocol inside the amendment does not have the digest that it locks"
        made = changes(held, amend)
        if made != amend.changes:
            yield f"{line} does not say truly what it changes"
        if event.seq in late:
            if fields := forbidden(made):
                yield f"{line} changes {', '.join(fields)} after the held-out split was consumed"
            if amend.dev:
                yield f"{line} puts dev records aside after the held-out split was consumed"
        yield Note(_said(event, amend))
        before, held = event, amend


def _said(event, amend: Amend) -> str:
    fields = ", ".join(c.field for c in amend.changes)
    return f"amended at {event.time} ({fields}): {' '.join(amend.reason.split())}"
