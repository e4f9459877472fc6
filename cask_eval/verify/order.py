"""Events that the commands could not have written in this order."""

from __future__ import annotations

from collections.abc import Iterator

from cask_eval.errors import StateError
from cask_eval.ledger.state import require, unfolded
from cask_eval.verify.evidence import Evidence

MAX_EVENTS = 2000


def faults(e: Evidence, *kinds: str) -> Iterator[str]:
    """One line per event of these kinds that its predecessors do not allow."""
    own = e.own
    if len(own) > MAX_EVENTS:
        yield f"the study has {len(own)} events, more than {MAX_EVENTS}"
        return
    for state, event in unfolded(own, e.study):
        if event.event in kinds:
            try:
                require(state, event.event)
            except StateError as error:
                yield f"line {event.seq + 1}: {str(error).split('; ')[0]}"
