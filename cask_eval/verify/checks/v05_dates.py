from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import Note, Open, check
from cask_eval.verify.evidence import Evidence


@check("V05", "not back-dated", "register")
def v05(e: Evidence) -> Iterator[str]:
    """Every time stamp in the ledger is what a trusted authority signed over that event, and no event's own time
    contradicts one. Without a stamp nothing is dated; the evidence level says so."""
    if not e.state.anchors:
        if e.seed_root is None:
            yield "the protocol says `anchor: registration`, but the ledger holds no time stamp over the registration"
        yield Open("no time stamp: nobody but the author says when anything happened")
        return
    found = e.anchors
    yield from found.faults
    if not found.stamps:
        yield Open("no time stamp is under a root that is trusted here, so nobody but the author says when")
    yield from (Note(text) for text in (*found.strange, *found.gaps, *found.notes))
