from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest

from cask_eval.ledger.events import RecordsCommit
from cask_eval.verify.check import Note, Skip, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.recorded import RecordFile


@check("V04", "records complete as committed")
def v04(e: Evidence) -> Iterator[str]:
    """Count and Merkle root of both records files; sessions only add; the reviewer's head is in the chain."""
    if e.head is None and not e.state.anchors:
        yield Note("events cut off the end of the ledger would not be seen: no anchor, and no head was given")
    elif e.head is None:
        yield Note("events cut off behind the last time stamp would not be seen: no head was given")
    elif e.head not in {event.hash for event in e.events}:
        yield f"the head {e.head} is not in the ledger: lines that were there are gone or replaced"

    if absent := [name for name in ("dev_run", "dev", "close", "heldout") if getattr(e, name) is None]:
        yield Skip(e.why(absent[0]))
    if e.dev_run and e.dev:
        yield from _compare("dev_run", e.dev_run.records, e.dev)
    for era, file in e.superseded:
        assert era.ended and era.records
        line = (era.dev_run or era.ended)[0].seq + 1
        if file is None:
            yield f"{era.records.path} is gone: dev records of line {line}, which an amendment put aside"
        else:
            yield from _compare(f"line {line}", era.records, file)
    if e.heldout:
        commits = [s.records for s in e.sessions] + ([e.close.records] if e.close else [])
        roots = _roots(e.heldout, commits)
        yield from _sessions(e, e.heldout, roots)
    if e.close and e.heldout:
        yield from _compare("close", e.close.records, e.heldout, roots)
        if not e.sessions:
            yield "the study is closed without a held-out session"
        elif e.sessions[-1].records != e.close.records:
            yield "close commits to other records than the last session"


def _sessions(e: Evidence, file: RecordFile, roots: Mapping[int, str]) -> Iterator[str]:
    """What a session left stays in the file, in front of what came later, and so do its segments."""
    before = 0
    for session in e.sessions:
        name, found = f"session {session.session}", session.records
        if e.close and found.path != e.close.records.path:
            yield f"{name} wrote {found.path}, close commits to {e.close.records.path}"
        if found.count < before:
            yield f"{name} ended with {found.count} records, fewer than the {before} before"
        if roots.get(found.count) != found.merkle_root:
            yield f"the {found.count} records of {name} are not the ones at the start of {file.path}"
        yield from _segments(name, found, file)
        before = found.count


def _roots(file: RecordFile, commits: Iterable[RecordsCommit]) -> dict[int, str]:
    """Count → root of so many of the first records; counts that are more than there are records are left out."""
    return file.rows.roots(c.count for c in commits if c.count <= len(file.rows))


def _compare(
    event: str, committed: RecordsCommit, file: RecordFile, roots: Mapping[int, str] | None = None
) -> Iterator[str]:
    if file.torn:
        yield f"{file.path}: the last line is incomplete"
    yield from _segments(event, committed, file)
    if len(file.segments) > len(committed.segments):
        extra = file.segments[len(committed.segments)].path
        yield f"{extra} is there, {event} commits to {len(committed.segments)} segments in front of {file.path}"
    if len(file.rows) != committed.count:
        yield f"{file.path} holds {len(file.rows)} records, {event} commits to {committed.count}"
    elif (roots or _roots(file, [committed]))[committed.count] != committed.merkle_root:
        yield f"{file.path} does not have the Merkle root that {event} commits to"


def _segments(event: str, committed: RecordsCommit, file: RecordFile) -> Iterator[str]:
    """Which sealed segments are not those that an event commits to."""
    for number, (due, found) in enumerate(zip_longest(committed.segments, file.segments), 1):
        if due is None:  # more may come after an event
            return
        if found is None:
            yield f"segment {number} of {file.path}, which {event} commits to, is not there"
        elif found.commit != due:
            held = found.commit.count if found.commit else 0
            what = f"holds {held} records, not the {due.count}"
            if held == due.count:
                what = "does not have the Merkle root"
            yield f"{found.path} {what} that {event} commits to"
