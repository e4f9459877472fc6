from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from cask_eval.canonical import loads
from cask_eval.fields import first_fault
from cask_eval.ledger.events import PAYLOADS, Event
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V25", "everything parses strictly")
def v25(e: Evidence) -> Iterator[str]:
    """No unknown field, NaN, duplicate key, torn or oversized line anywhere; records are canonical; time never goes
    back."""
    yield from e.load_faults
    if e.torn:
        yield "prereg/ledger.jsonl: the last line is incomplete"
    for number, line in enumerate(e.lines, 1):
        if fault := _fault(line):
            yield f"prereg/ledger.jsonl:{number}: {fault}"
    for before, after in zip(e.events, e.events[1:], strict=False):
        if after.time < before.time:
            yield f"prereg/ledger.jsonl:{after.seq + 1}: the clock went back from {before.time} to {after.time}"
    for file in (*(file for _, file in e.superseded), e.dev, e.heldout):
        if file:
            yield from file.faults
            if file.torn:
                yield f"{file.path}: the last line is incomplete"


def _fault(line: bytes) -> str | None:
    try:
        event = Event.model_validate(loads(line))
        if event.event not in PAYLOADS:
            return f"event {event.event!r} is not known"
        PAYLOADS[event.event].model_validate(event.payload)
        event.model_dump(mode="json")  # refuses what is nested too deeply
    except ValidationError as error:
        return first_fault(error)
    except ValueError as error:
        return str(error)
    return None
