"""The ledger file: append-only canonical JSON lines, each holding the hash of the line before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from cask_eval import jsonl
from cask_eval.canonical import ZERO, canonical, digest, loads
from cask_eval.errors import LedgerError, StateError
from cask_eval.fields import Strict, first_fault
from cask_eval.ledger.events import PAYLOADS, Event

TIME = "%Y-%m-%dT%H:%M:%SZ"
LOCK_SECONDS = 60
MAX_FAULTS = 10_000

Allow = Callable[[list[Event]], None]


class Ledger:
    """The ledger at `path`; a file that is not there is an empty ledger."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def events(self) -> list[Event]:
        """All events, checked. Raises LedgerError naming the first faulty line.

        An incomplete last line is what a crash leaves of an event that never took effect; it is passed over here
        and set aside by the next `append`.
        """
        return _events(self.path, jsonl.read(self.path).lines)

    @property
    def torn(self) -> bytes:
        """The incomplete last line, b"" if there is none."""
        return jsonl.read(self.path).torn

    @property
    def head(self) -> str:
        """Hash of the last event, `cask_eval.canonical.ZERO` for an empty ledger. Raises LedgerError."""
        return _head(self.events())

    def append(
        self, study: str, kind: str, payload: Strict, *, now: datetime | None = None, allow: Allow | None = None
    ) -> Event:
        """Write one event and return it once it is on disk.

        `allow` is called with the events under the lock and raises what forbids the event, so that looking and
        writing are one step. Raises LedgerError on a damaged ledger or a clock that went back, StateError when
        another process does not let go of the ledger, TypeError when the payload is not of the event's kind.
        """
        expected = PAYLOADS.get(kind)
        if expected is None or type(payload) is not expected:
            raise TypeError(f"event {kind!r} takes {expected and expected.__name__}, not {type(payload).__name__}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(str(self.path) + ".lock", timeout=LOCK_SECONDS):
                return self._append(study, kind, payload, now, allow)
        except Timeout:
            raise StateError(f"{self.path}: another process is writing to the ledger; wait for it to end") from None

    def _append(self, study: str, kind: str, payload: Strict, now: datetime | None, allow: Allow | None) -> Event:
        events = self.events()
        if allow:
            allow(events)
        time = (now or datetime.now(UTC)).astimezone(UTC).strftime(TIME)
        if events and time < events[-1].time:
            raise LedgerError(
                f"{self.path}: the clock reads {time}, but the last event was written at {events[-1].time}; "
                "set the clock right, then repeat the command"
            )
        event = seal(len(events), _head(events), study, kind, time, payload.model_dump(mode="json"))
        jsonl.repair(self.path)
        jsonl.append(self.path, line_of(event) + b"\n")
        return event


def seal(seq: int, prev: str, study: str, kind: str, time: str, payload: dict[str, Any]) -> Event:
    """The event with its own hash. Raises pydantic's ValidationError on a malformed field."""
    body = {"seq": seq, "prev": prev, "study": study, "event": kind, "time": time, "payload": payload}
    return Event.model_validate({**body, "hash": digest(body)})


def line_of(event: Event) -> bytes:
    """The event as it stands in the file, without the line end."""
    return canonical(event.model_dump(mode="json"))


def audit(lines: Iterable[bytes | str]) -> tuple[list[Event], list[str]]:
    """Check raw lines: form, payload, hash, chain, sequence, time. Returns (events, faults).

    Nothing is raised, so that a verifier sees every fault: each is one line starting ``line N:``. Events whose form
    or payload is wrong are left out; those that only break the chain stay in.
    """
    events: list[Event] = []
    faults: list[str] = []
    prev, time = ZERO, ""
    for number, raw in enumerate(lines, 1):
        if len(faults) >= MAX_FAULTS:
            faults.append(f"after {MAX_FAULTS} faults the rest, from line {number} on, was not read")
            break
        line = raw.encode() if isinstance(raw, str) else raw
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            event = _parse(line)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            # The next line can still be compared with what this one says its hash is.
            prev = _claimed_hash(line)
            continue
        faults += [f"line {number}: {what}" for what in _faults(event, line, number - 1, prev, time)]
        events.append(event)
        prev, time = event.hash, max(time, event.time)
    return events, faults


def _events(path: Path, lines: list[bytes]) -> list[Event]:
    events, faults = audit(lines)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise LedgerError(
            f"{path}: {faults[0]}{more}; the ledger is append-only: restore the file from version control"
        )
    return events


def _head(events: list[Event]) -> str:
    return events[-1].hash if events else ZERO


def _parse(line: bytes) -> Event:
    """One line as a typed event with a typed payload. Raises ValueError saying what is wrong."""
    if not line:
        raise ValueError("is empty")
    try:
        value = loads(line)
    except ValueError as error:
        raise ValueError(f"is not strict JSON: {error}") from None
    try:
        event = Event.model_validate(value)
        if not _is_time(event.time):
            raise ValueError(f"time {event.time!r} is no UTC time such as 2026-03-01T12:00:00Z")
        PAYLOADS[event.event].model_validate(event.payload)
        event.model_dump(mode="json")  # refuses what is nested too deeply to be written
    except ValidationError as error:
        what = "event" if error.title == "Event" else f"payload of {event.event!r}"
        raise ValueError(f"is not a valid {what}: {first_fault(error, 'line')}") from None
    return event


def _is_time(text: str) -> bool:
    """Whether the text is a date that exists, in ASCII digits: times are compared as text."""
    try:
        return datetime.strptime(text, TIME).strftime(TIME) == text
    except ValueError:
        return False


def _faults(event: Event, line: bytes, seq: int, prev: str, time: str) -> list[str]:
    body = event.model_dump(mode="json", exclude={"hash"})
    out = []
    if event.seq != seq:
        out.append(f"seq is {event.seq}, but {seq} is next; a line is missing, doubled or moved")
    if event.prev != prev:
        out.append(f"prev is {event.prev}, but the line before has hash {prev or 'unknown'}")
    try:
        actual = digest(body)
        if event.hash != actual:
            out.append(f"hash is {event.hash}, but the content has {actual}; the line was edited")
        elif line != line_of(event):
            out.append("is not in canonical form; the line was rewritten")
    except ValueError as error:
        out.append(f"cannot be hashed: {error}")
    if event.time < time:
        out.append(f"time {event.time} is before {time}, that of an earlier line")
    return out


def _claimed_hash(line: bytes) -> str:
    try:
        value = loads(line)
    except ValueError:
        return ""
    claimed = value.get("hash") if isinstance(value, dict) else None
    return claimed if isinstance(claimed, str) else ""
