from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cask_eval.ledger.state import studies
from cask_eval.protocol.keys import expected_keys, keys_root
from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.order import faults


@check("V07", "held-out split consumed once", "registration", "consume", "protocol", "heldout_manifest", "heldout")
def v07(e: Evidence) -> Iterator[str]:
    """One consume event before the first held-out record, committing to exactly the registered trials; one attempt,
    whose sessions follow one another; every record belongs to it."""
    assert e.consume and e.protocol and e.heldout_manifest and e.heldout
    yield from faults(e, "consume", "records", "close")
    for event in e.of_kind("consume")[1:]:
        yield f"line {event.seq + 1} consumes the held-out split again, at {event.time}"

    keys = expected_keys(e.protocol, [item.id for item in e.heldout_manifest.items])
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

    foreign = Counter(r.registration for r in e.heldout.records if r.registration != e.registration)
    for registration, count in foreign.items():
        yield f"{count} held-out records were made under another registration, {registration}"
    if others := sum(r.study != e.study for r in e.heldout.records):
        yield f"{others} held-out records belong to another study"
    yield from _spent_elsewhere(e)


def _spent_elsewhere(e: Evidence) -> Iterator[str]:
    """The same held-out problems consumed by another study of this ledger, before this one."""
    assert e.register and e.state.consume
    mine, seq = e.register.splits["heldout"].merkle_root, e.state.consume[0].seq
    for name, state in studies(e.events).items():
        if name == e.study or not state.register or not state.consume or state.consume[0].seq > seq:
            continue
        if state.register[1].splits["heldout"].merkle_root == mine:
            yield Note(f"study {name!r} consumed the same held-out split before, at {state.consume[0].time}")
