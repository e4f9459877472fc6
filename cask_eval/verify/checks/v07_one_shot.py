from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cask_eval.protocol.keys import expected_keys, keys_root
from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.order import faults


@check("V07", "held-out split consumed once", "registration", "protocol")
def v07(e: Evidence) -> Iterator[str]:
    """One consume event before the first held-out record, committing to exactly the registered trials; one attempt,
    whose sessions follow one another; every record belongs to it."""
    assert e.protocol
    yield from faults(e, "consume", "records", "close")
    if not (e.consume and e.select and e.heldout_manifest and e.heldout):
        parts = ("consume", "select", "heldout_manifest", "heldout")
        yield Skip(next(e.why(name) for name in parts if getattr(e, name) is None))
        return
    for event in e.of_kind("consume")[1:]:
        yield f"line {event.seq + 1} consumes the held-out split again, at {event.time}"

    keys = expected_keys(e.protocol, [item.id for item in e.heldout_manifest.items], e.select.survivors)
    if e.consume.expected != len(keys) or e.consume.keys != keys_root(keys):
        yield f"consume commits to {e.consume.expected} trials that are not the {len(keys)} registered ones"

    numbers = [s.session for s in e.sessions]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the sessions are numbered {numbers}"
    if e.sessions and not e.sessions[-1].complete and e.close:
        yield "the study was closed after an incomplete session"
    for session in e.sessions[:-1]:
        if session.complete:
            yield f"session {session.session} was complete, but another followed"

    foreign: Counter[str] = Counter()
    for about, count in e.heldout.rows.abouts.items():
        if about.registration != e.registration:
            foreign[about.registration] += count
    for registration, count in foreign.items():
        yield f"{count} held-out records were made under another registration, {registration}"
    if others := sum(count for about, count in e.heldout.rows.abouts.items() if about.study != e.study):
        yield f"{others} held-out records belong to another study"
