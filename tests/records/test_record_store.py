"""The records file: strict reading, resuming after a crash, one writer, a commitment that ignores order."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.canonical import ZERO, merkle_root
from cask_eval.errors import RecordError, StateError
from cask_eval.records import store as records_store
from cask_eval.records.model import Failure, GradeRecord, Record
from cask_eval.records.store import RecordStore, commit, evidence_of, line_of, parse


def make(problem: str = "p", sample: int = 0, output: str = "1", arm: str = "baseline", **fields) -> Record:
    return Record(
        **{
            "study": "s",
            "registration": ZERO,
            "phase": "dev",
            "cell": "m/b64",
            "arm": arm,
            "problem": problem,
            "problem_digest": ZERO,
            "sample": sample,
            "seed": "0" * 32,
            "status": "finished",
            "prompt_tokens": 3,
            "output_tokens": 1,
            "output": output,
            "output_ids": [1],
            "grade": GradeRecord(correct=True, extracted="1", how="box", grader="g/1"),
            "residency": None,
            **fields,
        }
    )


@pytest.fixture
def store(tmp_path) -> RecordStore:
    return RecordStore(tmp_path / "reports" / "s" / "dev.jsonl")


def filled(store: RecordStore, *records: Record) -> RecordStore:
    with store.open() as writer:
        writer.append(list(records))
    return store


def test_measures_are_no_evidence_and_everything_else_is():
    plain, told = make(), make(measures={"overlap": "0.5"})
    assert commit([plain], "x") == commit([told], "x")
    assert line_of(plain) != line_of(told)
    assert commit([plain], "x") != commit([make(kept_min=1)], "x")


def test_nothing_there(store):
    assert (list(store.read()), store.done) == ([], set())
    found = store.commit(store.path.parents[2])
    assert (found.count, found.merkle_root) == (0, merkle_root([]))


def test_append_read_done(store):
    one, two = make("a"), make("b", output="ä\u2028\r\n\0")
    with store.open() as writer:
        writer.append([one])
        assert writer.done == {one.key}
        writer.append([])
        writer.append([two])
        assert writer.done == {one.key, two.key}
    assert list(store.read()) == [one, two]
    assert store.done == {("dev", "m/b64", "baseline", "", "a", 0), ("dev", "m/b64", "baseline", "", "b", 0)}
    assert store.path.read_bytes() == line_of(one) + b"\n" + line_of(two) + b"\n"
    with store.open() as writer:
        assert writer.done == {one.key, two.key}


def test_one_sync_per_batch(store, monkeypatch):
    filled(store, make("a"))
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    filled(store, make("b"), make("c"), make("d"))
    assert len(synced) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.lists(st.integers(0, 2**53 - 1), max_size=4))
def test_round_trip(output, ids):
    record = make(output=output, output_ids=ids)
    assert parse(line_of(record), "x:1") == record
    assert b"\n" not in line_of(record) and b"\r" not in line_of(record)


def test_crlf_is_read_as_lf(store):
    filled(store, make("a", output="x\r\ny"), make("b"))
    before = list(store.read())
    store.path.write_bytes(store.path.read_bytes().replace(b"\n", b"\r\n"))
    assert list(store.read()) == before


def test_a_key_is_written_once(store):
    filled(store, make("a"))
    before = store.path.read_bytes()
    with store.open() as writer:
        with pytest.raises(RecordError, match="the trial dev/m/b64/baseline/a/0 has a record already"):
            writer.append([make("b"), make("a", output="better")])
        with pytest.raises(RecordError, match="the trial dev/m/b64/baseline/c/0"):
            writer.append([make("c"), make("c")])
        assert writer.done == {make("a").key}
    assert store.path.read_bytes() == before


def test_append_needs_open(store):
    with pytest.raises(StateError, match="open"):
        store.append([make()])
    with store.open():
        pass
    with pytest.raises(StateError, match="open"):
        store.append([make()])


# name → (what the second of three lines becomes, expected text)
DAMAGE = {
    "blank": (lambda line: b"", "not strict JSON"),
    "cut": (lambda line: line[:-5], "not strict JSON"),
    "duplicate field": (lambda line: line.replace(b'"arm":', b'"arm":"x","arm":'), "duplicate key 'arm'"),
    "float": (lambda line: line.replace(b'"prompt_tokens":3', b'"prompt_tokens":3.0'), "not strict JSON: 3.0"),
    "NaN": (lambda line: line.replace(b'"prompt_tokens":3', b'"prompt_tokens":NaN'), "not strict JSON: NaN"),
    "negative": (lambda line: line.replace(b'"prompt_tokens":3', b'"prompt_tokens":-3'), "prompt_tokens: "),
    "text for number": (lambda line: line.replace(b'"prompt_tokens":3', b'"prompt_tokens":"3"'), "prompt_tokens: "),
    "unknown status": (lambda line: line.replace(b"finished", b"excused"), "status: "),
    "unknown field": (lambda line: line.replace(b'"arm":', b'"note":"x","arm":'), "note: "),
    "nested": (lambda line: line.replace(b'"correct":true', b'"correct":1'), "grade.correct: "),
    "missing field": (lambda line: line.replace(b'"seed":"' + b"0" * 32 + b'",', b""), "seed: Field required"),
    "not UTF-8": (lambda line: line.replace(b'"box"', b'"\xff"'), "not strict JSON"),
    "a list": (lambda line: b"[]", "line: "),
    "repeated trial": (lambda line: line.replace(b'"problem":"b"', b'"problem":"a"'), "is already at line 1"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_by_line_and_field(store, case):
    damage, expected = DAMAGE[case]
    first, second, third = (line_of(make(p)) for p in "abc")
    assert damage(second) != second
    store.path.parent.mkdir(parents=True)
    store.path.write_bytes(b"\n".join([first, damage(second), third, b""]))
    before = store.path.read_bytes()
    with pytest.raises(RecordError) as caught:
        list(store.read())
    assert str(caught.value).startswith(f"{store.path}:2: ")
    assert expected in str(caught.value)
    with pytest.raises(RecordError), store.open():
        pass
    assert store.path.read_bytes() == before


def test_torn_last_line(tmp_path, monkeypatch, caplog):
    """The ledger's tests cut the same code's last line at every byte; here are the edges and a sample of the rest."""
    # What is repaired is the point here, not that the disk has it.
    monkeypatch.setattr("os.fsync", lambda fd: None)
    caplog.set_level(logging.WARNING)
    one, two, three = make("a"), make("b", output="ü"), make("c")
    head, last = line_of(one) + b"\n", line_of(two) + b"\n"
    letter = last.index("ü".encode())
    edges = {*range(4), *range(letter, letter + 4), *range(len(last) - 4, len(last))}
    for cut in sorted(edges | set(range(0, len(last), 11))):
        store = RecordStore(tmp_path / f"{cut}" / "dev.jsonl")
        store.path.parent.mkdir()
        store.path.write_bytes(head + last[:cut])
        complete = cut == len(last) - 1
        fragment = b"" if complete else last[:cut]
        if fragment:
            with pytest.raises(RecordError, match=r"dev\.jsonl:2: the last line is incomplete"):
                list(store.read())
        caplog.clear()
        with store.open() as writer:
            assert writer.torn == fragment
            assert writer.done == ({one.key, two.key} if complete else {one.key})
            writer.append([three] if complete else [two, three])
        assert list(store.read()) == [one, two, three]
        side = store.path.with_name("dev.jsonl.torn")
        assert (side.read_bytes() if side.exists() else b"") == (fragment + b"\n" if fragment else b"")
        assert bool(caplog.records) == bool(fragment)


HOLD = """
import sys, time
from cask_eval.records.store import RecordStore
with RecordStore(sys.argv[1]).open():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_turned_away_and_a_killed_one_is_not_waited_for(store):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(store.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match="another process"), store.open():
            pass
    finally:
        holder.kill()
        holder.communicate()
    deadline = time.monotonic() + 10
    while True:
        try:
            filled(store, make())
            break
        except StateError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(store.done) == 1


def test_the_lock_goes_back_after_an_error(store):
    with pytest.raises(ZeroDivisionError), store.open():
        1 / 0  # noqa: B018
    filled(store, make())


def test_commit_ignores_order_and_nothing_else(tmp_path):
    records = [make(p, s, arm=a) for p in ("a", "b") for s in (0, 1) for a in ("baseline", "candidate")]
    forward = filled(RecordStore(tmp_path / "one" / "dev.jsonl"), *records).commit(tmp_path)
    backward = filled(RecordStore(tmp_path / "two" / "dev.jsonl"), *records[::-1]).commit(tmp_path)
    assert (forward.path, backward.path) == ("one/dev.jsonl", "two/dev.jsonl")
    assert (forward.count, forward.merkle_root) == (backward.count, backward.merkle_root)
    assert forward.count == 8
    assert forward.merkle_root == merkle_root(evidence_of(r) for r in sorted(records, key=lambda r: r.key))
    for changed in (records[1:], [*records[:-1], records[-1].model_copy(update={"output": "x"})]):
        assert commit(changed, "x").merkle_root != forward.merkle_root


def test_commit_does_not_depend_on_white_space(store):
    before = filled(store, make("a")).commit(store.path.parent)
    store.path.write_text(json.dumps(json.loads(store.path.read_bytes()), indent=None) + "\n")
    assert store.commit(store.path.parent) == before


def test_failures_are_found_without_parsing_the_others(store, monkeypatch):
    failure = Failure(kind="method", error="X", message="no")
    said = '"failure":null'
    records = [make("a", output=said), make("b", status="failed", failure=failure, output=said), make("c"),
               make("d", measures={"failure": "null"})]  # fmt: skip
    filled(store, *records)
    # Written otherwise, it is parsed.
    store.path.write_bytes(store.path.read_bytes() + json.dumps(json.loads(line_of(make("e")))).encode() + b"\n")
    parsed, inner = [], records_store.parse
    monkeypatch.setattr(records_store, "parse", lambda line, where: parsed.append(where) or inner(line, where))
    assert list(store.failed()) == records[1:2]
    assert [int(where.rpartition(":")[2]) for where in parsed] == [2, 5]


def test_a_second_record_of_a_trial_is_named_with_the_first(store):
    lines = [line_of(make(p)) + b"\n" for p in "abca"]
    store.path.parent.mkdir(parents=True)
    store.path.write_bytes(b"".join(lines))
    for look in (lambda: list(store.read()), lambda: store.done, lambda: store.commit(store.path.parents[2])):
        with pytest.raises(RecordError, match=r"dev.jsonl:4: the trial dev/m/b64/baseline/a/0 is already at line 1; "):
            look()


def test_a_file_is_read_line_by_line(store):
    """However long it is; all of it and its lines were twice its size."""
    filled(store, make("a"))
    record, size = make("a", output="x" * 100_000), 200
    with open(store.path, "wb") as f:
        for i in range(size):
            f.write(line_of(record.model_copy(update={"problem": str(i)})) + b"\n")
    tracemalloc.start()
    assert sum(1 for _ in store.read()) == size
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size * 100_000 / 2
