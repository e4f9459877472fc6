from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cask_eval.ledger.state import studies
from cask_eval.protocol.keys import expected_keys, keys_root
from cask_eval.verify.check import Note, Skip, check
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

    foreign = Counter(r.registration for r in e.heldout.records if r.registration != e.registration)
    for registration, count in foreign.items():
        yield f"{count} held-out records were made under another registration, {registration}"
    if others := sum(r.study != e.study for r in e.heldout.records):
        yield f"{others} held-out records belong to another study"
    yield from _spent_elsewhere(e)


def _spent_elsewhere(e: Evidence) -> Iterator[str]:
    """Problems of the held-out split that another study of this ledger had run before this one consumed them."""
    assert e.register and e.state.consume and e.heldout_manifest
    lock, seq = e.register.splits["heldout"], e.state.consume[0].seq
    mine = {item.text for item in e.heldout_manifest.items}
    for name, state in studies(e.events).items():
        if name == e.study or not state.register:
            continue
        for role, event in (("dev", state.dev_run), ("heldout", state.consume)):
            if event is None or event[0].seq > seq:
                continue
            other, when = state.register[1].splits.get(role), event[0].time
            manifest = e.elsewhere.get((name, role))
            if other and other.merkle_root == lock.merkle_root:
                yield Note(f"study {name!r} {_VERBS[role]} the same held-out split before, at {when}")
            elif manifest and (shared := len(mine & {item.text for item in manifest.items})):
                yield Note(f"study {name!r} {_VERBS[role]} {shared} of these {len(mine)} problems before, at {when}")
            elif other and manifest is None:
                yield Note(
                    f"study {name!r} {_VERBS[role]} {other.path} before, at {when}; that file is not here as "
                    "registered, so it cannot be compared"
                )


_VERBS = {"dev": "tuned on", "heldout": "consumed"}
