"""Records in segments are what they are in one file: the same records, order, keys and root; damage is found and
named."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_record_store import make

from cask_eval import jsonl
from cask_eval.canonical import merkle_root
from cask_eval.errors import DriftError, RecordError, StateError
from cask_eval.records import segments
from cask_eval.records.store import RecordStore, evidence_of

FULL = 3


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Segments of three records. What lies where is the point here, not that the disk has it."""
    monkeypatch.setattr(segments, "FULL_RECORDS", FULL)
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture
def store(tmp_path) -> RecordStore:
    """Eleven records: three sealed segments and two records in the open one."""
    made = RecordStore(tmp_path / "reports" / "s" / "dev.jsonl")
    with made.open() as writer:
        for i in range(11):
            writer.append([make(f"p{i % 4}", i // 4, arm=("baseline", "candidate")[i % 2], output=str(i))])
    return made


def place(store: RecordStore, number: int) -> Path:
    return segments.place(store.path, number)


def names(store: RecordStore) -> list[str]:
    return sorted(p.name for p in segments.folder(store.path).iterdir())


def test_a_full_segment_is_sealed_when_more_comes(store):
    assert names(store) == [f"0000{i}.{kind}" for i in (1, 2, 3) for kind in ("index", "jsonl")]
    assert [len(p.read_bytes().splitlines()) for p in store.files] == [3, 3, 3, 2]
    assert [r.output for r in store.read()] == [str(i) for i in range(11)]
    with store.open() as writer:
        assert len(writer.done) == 11
        assert [r.output for r in writer.read()] == [str(i) for i in range(11)]
    found = store.commit(store.path.parents[2])
    assert found.count == 11 and [s.count for s in found.segments] == [3, 3, 3]
    first = list(store.read())[:3]
    assert found.segments[0].merkle_root == merkle_root(evidence_of(r) for r in sorted(first, key=lambda r: r.key))


def test_a_store_that_is_not_full_looks_as_it_always_did(tmp_path):
    store = RecordStore(tmp_path / "dev.jsonl")
    with store.open() as writer:
        writer.append([make(str(i)) for i in range(FULL)])
    assert not segments.folder(store.path).exists()
    assert "segments" not in store.commit(tmp_path).model_dump()


def test_bytes_fill_a_segment_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "FULL_RECORDS", 1000)
    monkeypatch.setattr(segments, "FULL_BYTES", 2000)
    store = RecordStore(tmp_path / "dev.jsonl")
    with store.open() as writer:
        for i in range(9):
            writer.append([make(str(i))])
    assert len(store.files) > 2 and len(store.done) == 9


TRIALS = st.lists(
    st.tuples(
        st.sampled_from("abcdé"), st.integers(0, 3), st.sampled_from(["baseline", "x", "y"]), st.text(max_size=5)
    ),
    unique_by=lambda t: t[:3],
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(TRIALS, st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=20), st.integers(1, 6))
def test_it_is_the_same_as_one_file(trials, steps, full):
    """Whatever the batches, and wherever the store was closed and opened again."""
    records = [make(p, s, arm=arm, output=text, measures={"m": text}) for p, s, arm, text in trials]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        one, several = (RecordStore(Path(folder) / name / "dev.jsonl") for name in ("one", "several"))
        patch.setattr(segments, "FULL_RECORDS", 1000)
        with one.open() as writer:
            writer.append(records)
        patch.setattr(segments, "FULL_RECORDS", full)
        rest, plan = list(records), [*steps, *[(2, False)] * len(records)]
        while rest:
            with several.open() as writer:
                assert writer.done == {r.key for r in records[: len(records) - len(rest)]}
                while rest:
                    count, again = plan.pop(0)
                    writer.append(rest[:count])
                    del rest[:count]
                    if again:
                        break
        assert list(several.read()) == list(one.read()) == records
        assert several.done == one.done
        ours, theirs = (s.commit(s.path.parent) for s in (several, one))
        assert (ours.count, ours.merkle_root) == (theirs.count, theirs.merkle_root)
        with several.open() as writer:
            assert writer.commit(several.path.parent) == ours
            for arm in ("baseline", "x"):
                assert list(writer.read("m/b64", arm)) == [r for r in records if r.arm == arm]
            assert list(writer.read(None, "x", "")) == list(several.read(None, "x")) == list(one.read("m/b64", "x"))
            assert list(writer.read("other")) == []
            if records:
                with pytest.raises(RecordError, match="has a record already"):
                    writer.append([records[0]])
        assert several.commit(several.path.parent) == ours


def test_line_ends_of_another_system_are_counted(store):
    store.path.write_bytes(store.path.read_bytes().replace(b"\n", b"\r\n"))
    with store.open() as writer:
        assert [r.output for r in writer.read("m/b64", "baseline")] == ["0", "2", "4", "6", "8", "10"]


def test_a_torn_line_is_only_ever_in_the_open_segment(store):
    with open(store.path, "ab") as f:
        f.write(b'{"arm":')
    with store.open() as writer:
        assert writer.torn == b'{"arm":' and len(writer.done) == 11
    path = place(store, 2)
    path.write_bytes(path.read_bytes()[:-20])
    for read in (lambda: list(store.read()), lambda: store.commit(store.path.parents[2])):
        with pytest.raises(RecordError, match=r"00002\.jsonl:3: the last line is incomplete; it was complete once"):
            read()


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("damage", [
    lambda b: b.replace(b'"correct":true', b'"correct":null', 1), lambda b: b[:-1], lambda b: b + b"\n", lambda b: b"",
    lambda b: b"\n".join(b.split(b"\n")[1:]), lambda b: b.replace(b'"output":"', b'"output": "', 1),
])  # fmt: skip
def test_damage_to_a_sealed_segment_is_named(store, number, damage):
    path = place(store, number)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RecordError, match=rf"0000{number}\.jsonl: is not the segment that was sealed"), store.open():
        pass


def test_damage_is_named_when_the_index_is_lost_too(store):
    path = place(store, 2)
    segments.beside(path).unlink()
    path.write_bytes(path.read_bytes().replace(b'"correct":true', b'"correct":null', 1))
    with pytest.raises(RecordError, match=r"00002\.jsonl:1: grade\.correct"), store.open():
        pass


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-9]),
                                  lambda p: p.write_bytes(p.read_bytes().replace(b"p1", b"p2"))])  # fmt: skip
def test_an_index_is_made_again(store, number, harm, caplog):
    caplog.set_level(logging.WARNING)
    index = segments.beside(place(store, number))
    before, committed = index.read_bytes(), store.commit(store.path.parents[2])
    harm(index)
    with store.open() as writer:
        assert len(writer.done) == 11 and writer.commit(store.path.parents[2]) == committed
    assert index.read_bytes() == before
    assert bool(caplog.records) == ("made again" in caplog.text)


def test_an_index_of_another_segment_is_no_index_of_this_one(store):
    one, two = (segments.beside(place(store, i)) for i in (1, 2))
    two.write_bytes(one.read_bytes())
    with pytest.raises(RecordError, match=r"00002\.jsonl: is not the segment that was sealed"), store.open():
        pass


def test_segments_that_changed_places_are_found(store):
    one, two = place(store, 1), place(store, 2)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    with pytest.raises(RecordError, match=r"00001\.jsonl: is not the segment that was sealed"), store.open():
        pass


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_segment_that_is_gone_is_named(store, number):
    place(store, number).unlink()
    expected = rf"0000{number}\.jsonl: this segment is gone"
    for read in (lambda: list(store.read()), lambda: store.done, lambda: store.commit(store.path.parents[2])):
        with pytest.raises(RecordError, match=expected):
            read()
    with pytest.raises(RecordError, match=expected), store.open():
        pass


@pytest.mark.parametrize("name", ["4.jsonl", "00004.txt", "00000.jsonl", "00002.jsonl.bak", "000004.jsonl"])
def test_what_is_no_segment_is_named(store, name):
    (segments.folder(store.path) / name).write_bytes(place(store, 1).read_bytes())
    with pytest.raises(RecordError, match="is no segment's name"):
        list(store.read())


def test_a_segment_too_many_repeats_keys(store):
    place(store, 4).write_bytes(place(store, 1).read_bytes())
    with pytest.raises(RecordError, match=r"00004\.jsonl:1: .* is already at .*00001\.jsonl:1"):
        list(store.read())
    with pytest.raises(RecordError, match=r"00004\.jsonl:1: .* is in an earlier segment too"), store.open():
        pass


def test_a_second_record_of_a_trial_in_the_open_segment(store):
    with open(store.path, "ab") as f:
        f.write(place(store, 1).read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(RecordError, match=r"dev\.jsonl:3: .* is in an earlier segment too"), store.open():
        pass


def test_a_segment_is_not_moved_over_another(store):
    with store.open() as writer:
        writer.append([make("last")])
        place(store, 4).write_bytes(b"")
        with pytest.raises(RecordError, match=r"00004\.jsonl is there already"):
            writer.append([make("more")])


def test_packing(store):
    root = store.path.parents[2]
    committed, before = store.commit(root), list(store.read())
    assert store.pack(committed)
    assert names(store) == [f"0000{i}.jsonl.gz" for i in (1, 2, 3)] and not store.path.exists()
    assert list(store.read()) == before and store.commit(root) == committed
    assert not store.pack(committed)
    with pytest.raises(StateError, match="is packed"), store.open():
        pass


def test_packing_goes_on_where_it_was_cut_off(store, monkeypatch):
    committed, before = store.commit(store.path.parents[2]), list(store.read())
    inner = os.replace
    for last in (1, 2, 2):
        calls = iter(range(1, last + 1))

        def crash(*args, calls=calls, last=last):
            if next(calls) == last:
                raise KeyboardInterrupt
            return inner(*args)

        monkeypatch.setattr("os.replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store.pack(committed)
        assert list(store.read()) == before
        monkeypatch.setattr("os.replace", inner)
    # One of them in both forms, as a crash in front of the last step leaves it.
    path = place(store, 2)
    assert not path.exists() and place(store, 3).exists()
    path.write_bytes(b"".join(line + b"\n" for line in jsonl.read_packed(path).lines))
    assert store.pack(committed)
    assert list(store.read()) == before and store.commit(store.path.parents[2]) == committed


@pytest.mark.parametrize("number", [1, 3])
def test_what_is_not_committed_to_is_not_packed(store, number):
    committed, path = store.commit(store.path.parents[2]), place(store, number)
    path.write_bytes(path.read_bytes().replace(b'"correct":true', b'"correct":false', 1))
    with pytest.raises(DriftError, match=rf"0000{number}\.jsonl is not what the ledger commits to; restore it"):
        store.pack(committed)
    assert not list(segments.folder(store.path).glob("*.gz"))


def test_a_segment_that_the_ledger_does_not_know_is_not_packed(store):
    committed = store.commit(store.path.parents[2])
    with store.open() as writer:
        writer.append([make("x"), make("y")])
        writer.append([make("z")])
    with pytest.raises(DriftError, match="holds 4 segments, the ledger commits to 3"):
        store.pack(committed)
