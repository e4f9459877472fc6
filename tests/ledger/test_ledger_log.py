"""The ledger file: chain, tampering, crashes, clocks, two writers at once."""

from __future__ import annotations

import json
import multiprocessing
import os
from datetime import UTC, datetime, timedelta, timezone

import pytest
from filelock import FileLock

from cask_eval.canonical import ZERO, canonical, digest
from cask_eval.errors import LedgerError, StateError
from cask_eval.ledger import log
from cask_eval.ledger.events import Analysis
from cask_eval.ledger.log import Ledger, audit, line_of, seal

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path, payload):
    """Three events, a second apart."""
    ledger = Ledger(tmp_path / "prereg" / "ledger.jsonl")
    for i, kind in enumerate(("register", "dev_run", "select")):
        ledger.append("s", kind, payload(kind), now=NOON + timedelta(seconds=i))
    return ledger


def lines(ledger: Ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines()


def rewrite(ledger: Ledger, new: list[bytes]) -> None:
    ledger.path.write_bytes(b"".join(line + b"\n" for line in new))


def test_empty(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert (ledger.events(), ledger.head, ledger.torn) == ([], ZERO, b"")
    assert not ledger.path.exists()


def test_append_and_read(ledger, payload):
    events = ledger.events()
    assert [(e.seq, e.event, e.time) for e in events] == [
        (0, "register", "2026-03-01T12:00:00Z"),
        (1, "dev_run", "2026-03-01T12:00:01Z"),
        (2, "select", "2026-03-01T12:00:02Z"),
    ]
    assert [e.prev for e in events] == [ZERO, events[0].hash, events[1].hash]
    assert ledger.head == events[2].hash
    assert events[0].payload == payload("register").model_dump(mode="json")
    body = json.loads(lines(ledger)[1])
    assert body.pop("hash") == digest(body)
    assert audit(lines(ledger)) == (events, [])


def test_an_event_is_on_disk_before_append_returns(ledger, payload, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    ledger.append("s", "consume", payload("consume"))
    assert synced == [ledger.path.stat().st_size]
    fresh = Ledger(ledger.path.with_name("other.jsonl"))
    fresh.append("s", "register", payload("register"))
    # A new file needs its folder synced too.
    assert len(synced) == 3


def test_time_is_utc_seconds(ledger, payload):
    later = (NOON + timedelta(hours=1, microseconds=999_999)).astimezone(timezone(timedelta(hours=5)))
    assert ledger.append("s", "consume", payload("consume"), now=later).time == "2026-03-01T13:00:00Z"


def test_crlf_is_read_as_lf(ledger):
    events = ledger.events()
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b"\n", b"\r\n"))
    assert ledger.events() == events
    assert audit(ledger.path.read_bytes().splitlines(keepends=True)) == (events, [])


def edit(number: int, **fields):
    """Change fields of one line and give it a fitting hash, as a forger would."""

    def change(found: list[bytes]) -> list[bytes]:
        body = {**json.loads(found[number]), **fields}
        body.pop("hash")
        body["hash"] = digest(body)
        return [*found[:number], canonical(body), *found[number + 1 :]]

    return change


# name → (tampering, the first fault)
TAMPERING = {
    "one byte": (lambda x: [x[0], x[1].replace(b"12:00:01", b"12:00:02"), x[2]], "line 2: hash is"),
    "payload": (lambda x: [x[0], x[1], x[2].replace(b'"max"', b'"min"')], "line 3: hash is"),
    "rehashed": (edit(1, time="2026-03-01T12:00:02Z"), "line 3: prev is"),
    "removed first": (lambda x: x[1:], "line 1: seq is 1, but 0 is next"),
    "removed middle": (lambda x: [x[0], x[2]], "line 2: seq is 2, but 1 is next"),
    "doubled": (lambda x: [x[0], x[1], x[1], x[2]], "line 3: seq is 1"),
    "swapped": (lambda x: [x[0], x[2], x[1]], "line 2: seq is 2"),
    "time back": (edit(2, time="2026-03-01T12:00:00Z"), "line 3: time 2026-03-01T12:00:00Z is before"),
    "no such time": (edit(2, time="2026-02-30T12:00:00Z"), "line 3: time '2026-02-30T12:00:00Z' is no UTC time"),
    "other digits": (edit(2, time="２026-03-01T12:00:09Z"), "line 3: time '２026-03-01T12:00:09Z' is no UTC"),
    "local time": (edit(2, time="2026-03-01T12:00:09+01:00"), "line 3: is not a valid event: time"),
    "unknown kind": (edit(2, event="approve"), "line 3: is not a valid event: event"),
    "wrong payload": (edit(2, payload={"rule": 3}), "line 3: is not a valid payload of 'select': rule"),
    "extra field": (edit(2, note="x"), "line 3: is not a valid event: note"),
    "boolean seq": (edit(1, seq=True), "line 2: is not a valid event: seq"),
    "blank line": (lambda x: [x[0], b"", x[1], x[2]], "line 2: is empty"),
    "not JSON": (lambda x: [x[0], b"{", x[1], x[2]], "line 2: is not strict JSON"),
    "a list": (lambda x: [b"[]", *x[1:]], "line 1: is not a valid event: line"),
    "white space": (lambda x: [x[0], x[1].replace(b'{"', b'{ "', 1), x[2]], "line 2: is not in canonical form"),
    "key order": (
        lambda x: [x[0], json.dumps(dict(reversed(json.loads(x[1]).items())), separators=(",", ":")).encode(), x[2]],
        "line 2: is not in canonical form",
    ),
    "duplicate key": (lambda x: [x[0], x[1].replace(b'"seq":1', b'"seq":1,"seq":1'), x[2]], "line 2: is not strict"),
    "not UTF-8": (lambda x: [x[0], x[1].replace(b"alpha", b"\xff"), x[2]], "line 2: is not strict JSON"),
    "deep": (lambda x: [x[0], b"[" * 100_000, x[1]], "line 2: is not strict JSON"),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_is_named_by_line(ledger, payload, case):
    tamper, expected = TAMPERING[case]
    rewrite(ledger, tamper(lines(ledger)))
    before = ledger.path.read_bytes()
    assert audit(lines(ledger))[1][0].startswith(expected)
    with pytest.raises(LedgerError, match=str(ledger.path)) as caught:
        ledger.events()
    assert expected in str(caught.value)
    with pytest.raises(LedgerError):
        ledger.append("s", "consume", payload("consume"))
    assert ledger.path.read_bytes() == before


def test_audit_goes_on_after_a_fault(ledger):
    first, second, third = lines(ledger)
    events, faults = audit([first.replace(b"12:00:00", b"12:00:01"), second, b"{}", third])
    assert [e.seq for e in events] == [0, 1, 2]
    assert [f.split(":")[0] for f in faults] == ["line 1", "line 3", "line 4", "line 4"]


def test_audit_compares_times_with_the_latest_before(ledger):
    """One event far ahead does not become excusable by the next one that is behind."""
    found = edit(0, time="2026-03-01T12:00:09Z")(lines(ledger))
    assert [f.split(":")[0] for f in audit(found)[1] if "is before" in f] == ["line 2", "line 3"]


def test_audit_does_not_blame_the_line_after_a_bad_payload(ledger):
    """Line 3 continues the chain that line 2 claims, so only line 2 is at fault."""
    first, second, third = lines(ledger)
    bad = json.loads(second)
    bad["payload"]["methods"] = 3
    assert [f.split(":")[0] for f in audit([first, json.dumps(bad).encode(), third])[1]] == ["line 2"]


def test_torn_last_line_at_every_byte(tmp_path, payload, monkeypatch):
    # That every length is repaired is the point here, not that the disk has it.
    monkeypatch.setattr("os.fsync", lambda fd: None)
    ledger = Ledger(tmp_path / "whole.jsonl")
    for decision in ("one", "ü"):
        ledger.append("s", "analysis", Analysis(digest=ZERO, branch="A", decision=decision), now=NOON)
    whole = ledger.path.read_bytes()
    events = ledger.events()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole)):
        torn = Ledger(tmp_path / f"cut{cut}" / "ledger.jsonl")
        torn.path.parent.mkdir()
        torn.path.write_bytes(whole[:cut])
        # The last byte is the newline: without it the event is still complete.
        kept, fragment = (2, b"") if cut == len(whole) - 1 else (1, whole[start:cut])
        assert torn.events() == events[:kept]
        assert torn.torn == fragment
        added = torn.append("s", "analysis", payload("analysis"), now=NOON + timedelta(seconds=9))
        assert audit(lines(torn)) == ([*events[:kept], added], [])
        side = torn.path.with_name("ledger.jsonl.torn")
        assert side.exists() == bool(fragment)
        if fragment:
            assert side.read_bytes() == fragment + b"\n"


def test_a_second_torn_line_joins_the_first(ledger, payload):
    for fragment in (b'{"seq', b"\0\0\0"):
        with open(ledger.path, "ab") as f:
            f.write(fragment)
        ledger.append("s", "analysis", payload("analysis"))
    assert ledger.path.with_name("ledger.jsonl.torn").read_bytes() == b'{"seq\n\0\0\0\n'
    assert len(ledger.events()) == 5


@pytest.mark.parametrize("last", [b'{"seq":9}', b'{"a":1,"a":2}', b'{}{"seq"', b'{"seq":9}\n'])
def test_a_complete_last_line_is_never_set_aside(ledger, payload, last):
    with open(ledger.path, "ab") as f:
        f.write(last)
    before = ledger.path.read_bytes()
    for use in (ledger.events, lambda: ledger.append("s", "analysis", payload("analysis"))):
        with pytest.raises(LedgerError, match="line 4"):
            use()
    assert ledger.path.read_bytes() == before
    assert not ledger.path.with_name("ledger.jsonl.torn").exists()


def test_clock_going_back_is_refused(ledger, payload):
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match=r"clock reads 2026-03-01T12:00:01Z.*12:00:02Z; set the clock right"):
        ledger.append("s", "consume", payload("consume"), now=NOON + timedelta(seconds=1))
    assert ledger.path.read_bytes() == before
    ledger.append("s", "consume", payload("consume"), now=NOON + timedelta(seconds=2))


def test_allow_sees_the_events_and_can_forbid(ledger, payload):
    before = ledger.path.read_bytes()
    seen = []

    def allow(events):
        seen.extend(events)
        raise StateError("no")

    with pytest.raises(StateError, match="no"):
        ledger.append("s", "consume", payload("consume"), allow=allow)
    assert len(seen) == 3
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("kind", ["analysis", "anchor", "nonsense"])
def test_payload_must_be_of_the_kind(ledger, payload, kind):
    with pytest.raises(TypeError, match=kind):
        ledger.append("s", kind, payload("select"))
    assert len(ledger.events()) == 3


def test_a_held_lock_is_reported(ledger, payload, monkeypatch):
    monkeypatch.setattr(log, "LOCK_SECONDS", 0.05)
    with FileLock(str(ledger.path) + ".lock"), pytest.raises(StateError, match="another process"):
        ledger.append("s", "consume", payload("consume"))


def test_seal_and_line_of_invert_the_file(ledger):
    for raw, event in zip(lines(ledger), ledger.events(), strict=True):
        assert line_of(event) == raw
        assert seal(event.seq, event.prev, event.study, event.event, event.time, event.payload) == event


def work(path: str, study: str, count: int, start) -> None:
    start.wait(30)
    for i in range(count):
        Ledger(path).append(study, "analysis", Analysis(digest=ZERO, branch="A", decision=f"{study} {i}"))


def test_two_processes_lose_no_event(tmp_path):
    context = multiprocessing.get_context("spawn")
    path, start, count = tmp_path / "ledger.jsonl", context.Barrier(2), 12
    workers = [context.Process(target=work, args=(str(path), name, count, start)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    events = Ledger(path).events()
    assert len(events) == 2 * count
    for name in ("a", "b"):
        assert [e.payload["decision"] for e in events if e.study == name] == [f"{name} {i}" for i in range(count)]
