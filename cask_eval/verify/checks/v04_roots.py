from __future__ import annotations

from collections.abc import Iterator

from cask_eval.canonical import merkle_root
from cask_eval.ledger.events import RecordsCommit
from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence, RecordFile


@check("V04", "records complete as committed", "close", "heldout", "dev_run", "dev")
def v04(e: Evidence) -> Iterator[str]:
    """Count and Merkle root of both records files; sessions only add; the reviewer's head is in the chain."""
    assert e.close and e.heldout and e.dev_run and e.dev
    yield from _compare("close", e.close.records, e.heldout)
    yield from _compare("dev_run", e.dev_run.records, e.dev)

    before = 0
    for session in e.sessions:
        if session.records.path != e.close.records.path:
            yield f"session {session.session} wrote {session.records.path}, close commits to {e.close.records.path}"
        if session.records.count < before:
            yield f"session {session.session} ended with {session.records.count} records, fewer than the {before} before"
        before = session.records.count
    if not e.sessions:
        yield "the study is closed without a held-out session"
    elif e.sessions[-1].records != e.close.records:
        yield f"close commits to {e.close.records.count} records, the last session to {before}"

    if e.head is None:
        yield Note("events cut off the end of the ledger would not be seen: no anchor, and no head was given")
    elif e.head not in {event.hash for event in e.events}:
        yield f"the head {e.head} is not in the ledger: lines that were there are gone or replaced"


def _compare(event: str, committed: RecordsCommit, file: RecordFile) -> Iterator[str]:
    if file.torn:
        yield f"{file.path}: the last line is incomplete"
    # As in `records.store.commit`, from the lines that are there already.
    leaves = sorted((record.key, line) for record, line in zip(file.records, file.lines, strict=True))
    if len(leaves) != committed.count:
        yield f"{file.path} holds {len(leaves)} records, {event} commits to {committed.count}"
    elif merkle_root(line for _, line in leaves) != committed.merkle_root:
        yield f"{file.path} does not have the Merkle root that {event} commits to"
