"""Packed records: everything reads them as before, and nothing is lost on the way."""

import gzip
import json
import os
import shutil
import tracemalloc
from datetime import datetime

import pytest
from click.testing import CliRunner
from simulator import STUDY, Forger, build, line, read_lines

from cask_eval import jsonl
from cask_eval.cli import cli
from cask_eval.errors import CaskError, DriftError, RecordError, StateError
from cask_eval.records.store import RecordStore
from cask_eval.verify import recorded
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.run import verify
from cask_eval.workspace import Workspace


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    root = tmp_path_factory.mktemp("closed") / "ws"
    build(root)
    return root


@pytest.fixture
def study(closed, tmp_path):
    root = shutil.copytree(closed, tmp_path / "ws")
    return root, root / "reports" / STUDY / "heldout.jsonl"


def cask(root, *args):
    result = CliRunner().invoke(cli, ["-C", str(root), *args], standalone_mode=False)
    if isinstance(result.exception, CaskError):
        raise result.exception
    return result


def test_a_packed_study_verifies_as_before(study):
    root, path = study
    before = path.read_bytes()
    plain = cask(root, "verify", "--require", "L0")
    cask(root, "pack")
    assert not path.exists() and gzip.decompress(jsonl.packed(path).read_bytes()) == before
    packed = cask(root, "verify", "--require", "L0")
    assert plain.return_value == packed.return_value == 0 and plain.output == packed.output
    assert len(list(RecordStore(path).read())) == before.count(b"\n")


def test_packing_twice_and_on_another_machine_gives_the_same_bytes(study, tmp_path):
    root, path = study
    shutil.copy(path, tmp_path / "other.jsonl")
    jsonl.pack(tmp_path / "other.jsonl")
    cask(root, "pack")
    first = jsonl.packed(path).read_bytes()
    assert first == jsonl.packed(tmp_path / "other.jsonl").read_bytes()
    assert "packed already" in cask(root, "pack").output and jsonl.packed(path).read_bytes() == first


def test_records_that_were_edited_are_not_packed(study):
    root, path = study
    path.write_bytes(path.read_bytes().replace(b'"correct":true', b'"correct":false', 1))
    with pytest.raises(DriftError, match="not what the ledger commits to"):
        cask(root, "pack")
    assert path.exists() and not jsonl.packed(path).exists()


def test_a_packed_file_that_was_edited_is_not_called_packed(study):
    root, path = study
    cask(root, "pack")
    edited = gzip.decompress(jsonl.packed(path).read_bytes()).replace(b'"correct":true', b'"correct":false', 1)
    jsonl.packed(path).write_bytes(gzip.compress(edited))
    with pytest.raises(DriftError, match="not what the ledger commits to"):
        cask(root, "pack")


@pytest.mark.parametrize("events, state", [(1, "registered"), (3, "tuned"), (5, "consumed")])
def test_a_study_that_is_not_closed_is_not_packed(study, events, state):
    root, path = study
    ledger = root / "prereg" / "ledger.jsonl"
    ledger.write_bytes(b"".join(line(e) + b"\n" for e in read_lines(ledger)[:events]))
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(StateError, match=f"study 'sim' is {state}, not closed"):
        cask(root, "pack")
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


class Later(datetime):
    """The made-up study's clock is ahead of ours."""

    @classmethod
    def now(cls, tz=None):
        return datetime(2028, 1, 1, tzinfo=tz)


def test_a_closed_study_is_packed_before_it_is_analysed(study, monkeypatch):
    root, path = study
    monkeypatch.setattr("cask_eval.ledger.log.datetime", Later)
    ledger = root / "prereg" / "ledger.jsonl"
    ledger.write_bytes(b"".join(line(e) + b"\n" for e in read_lines(ledger)[:-1]))
    analysis = path.with_name("analysis.json")
    before = json.loads(analysis.read_bytes())
    analysis.unlink()
    cask(root, "pack")
    assert cask(root, "status").output.splitlines()[1].endswith("analyze sim")
    cask(root, "analyze")
    assert json.loads(analysis.read_bytes()) == before
    assert cask(root, "status").output.splitlines()[1].endswith("verify sim")
    assert cask(root, "verify", "--require", "L0").return_value == 0


def test_status_and_report_are_those_of_the_plain_study(study):
    root, _ = study

    def said():
        return cask(root, "status").output, cask(root, "report").output, cask(root, "report", "--json").output

    plain = said()
    cask(root, "pack")
    assert said() == plain and "sim: closed" in plain[0]


def test_a_crash_on_the_way_loses_nothing(study, monkeypatch):
    root, path = study
    before = path.read_bytes()

    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", crash)
        with pytest.raises(KeyboardInterrupt):
            jsonl.pack(path)
    assert path.read_bytes() == before and verify(root, STUDY, require="L0").exit_code == 0
    cask(root, "pack")
    assert gzip.decompress(jsonl.packed(path).read_bytes()) == before


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_the_packed_form_is_on_disk_before_the_plain_one_goes(study, monkeypatch):
    _, path = study
    done = []

    def tell(owner, name):
        inner = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (done.append(name), inner(*args))[1])

    for owner, name in ((os, "fsync"), (os, "replace"), (type(path), "unlink")):
        tell(owner, name)
    jsonl.pack(path)
    assert done == ["fsync", "replace", "fsync", "unlink", "fsync"]


def test_the_header_says_nothing_of_time_file_and_system(study):
    root, path = study
    cask(root, "pack")
    assert jsonl.packed(path).read_bytes()[:10] == bytes.fromhex("1f8b08000000000002ff")


def test_nothing_is_added_to_a_packed_file(study):
    root, path = study
    cask(root, "pack")
    before = jsonl.packed(path).read_bytes()
    with pytest.raises(StateError, match="is packed: its study is closed"), RecordStore(path).open():
        pass
    assert not path.exists() and jsonl.packed(path).read_bytes() == before


def test_both_forms_at_once_are_an_error_everywhere(study):
    root, path = study
    before = path.read_bytes()
    cask(root, "pack")
    path.write_bytes(before)
    with pytest.raises(RecordError, match="both there"):
        list(RecordStore(path).read())
    result = cask(root, "verify", "--require", "L0")
    assert result.return_value == 1 and "one of them must go" in result.output


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b"x" + b[1:], lambda b: b[:60] + b"!" + b[61:]])
def test_a_damaged_file_fails(study, damage):
    root, path = study
    cask(root, "pack")
    jsonl.packed(path).write_bytes(damage(jsonl.packed(path).read_bytes()))
    with pytest.raises(RecordError, match="cannot be unpacked"):
        list(RecordStore(path).read())
    assert cask(root, "verify", "--require", "L0").return_value == 1


def bomb(root, path, pieces):
    """Pack `pieces` in place of the held-out records and verify; returns what is said of V25 and the peak in bytes."""
    path.unlink()
    with gzip.open(jsonl.packed(path), "wb", 9) as f:
        for piece in pieces:
            f.write(piece)
    tracemalloc.start()
    try:
        failed = {r.id: r for r in verify(root, STUDY, require="L0").failed}
        return " ".join(failed["V25"].details), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MIB = 1 << 20


@pytest.mark.parametrize("piece, message", [(b"\n" * MIB, "more than the 240 records"), (bytes(MIB), "a line of more")])
def test_a_bomb_is_cut_off_before_it_fills_the_memory(study, monkeypatch, piece, message):
    """It holds 512 MiB."""
    monkeypatch.setattr(recorded, "MAX_LINE", 8 * MIB)
    said, peak = bomb(*study, (piece for _ in range(512)))
    assert message in said and peak < 100 * MIB


def test_a_bomb_that_the_ledger_commits_to_is_cut_off(study):
    """The ledger may name any number of records."""
    root, path = study
    forger = Forger(root).resign()
    for e in forger.events:
        if e["event"] in ("records", "close"):
            e["payload"]["records"]["count"] = 2**50
    forger.resign("commits", "analysis").write()
    _, peak = bomb(root, path, (b"\n" * MIB for _ in range(256)))
    assert peak < 100 * MIB
    heldout = Evidence.load(Workspace(root), STUDY).heldout
    assert heldout.faults[-1].endswith("after 10000 faulty lines the rest was not read")


def test_the_bound_on_a_file_is_about_what_it_unpacks_to(study, monkeypatch):
    root, path = study
    size = path.stat().st_size
    cask(root, "pack")
    monkeypatch.setattr(recorded, "MAX_FILE", size)
    assert verify(root, STUDY, require="L0").exit_code == 0
    monkeypatch.setattr(recorded, "MAX_FILE", size - 1)
    failed = {r.id: r for r in verify(root, STUDY, require="L0").failed}
    assert f"unpacks to more than {size - 1} bytes" in failed["V25"].details[0]


def test_a_record_more_than_committed_fails_packed_as_well(study):
    root, path = study
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    jsonl.pack(path)
    failed = {r.id: r for r in verify(root, STUDY, require="L0").failed}
    assert "unpacks to more than the 240 records" in failed["V25"].details[0]


def test_an_incomplete_last_line_fails_packed_as_well(study):
    root, path = study
    path.write_bytes(path.read_bytes()[:-20])
    jsonl.pack(path)
    failed = {r.id: r for r in verify(root, STUDY, require="L0").failed}
    assert "heldout.jsonl.gz:240: the last line is incomplete" in failed["V25"].details[0]


def test_line_ends_and_a_missing_last_one_do_not_matter(study):
    root, path = study
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    cask(root, "pack")
    assert cask(root, "verify", "--require", "L0").return_value == 0


@pytest.mark.parametrize("form", ["plain", "packed"])
def test_a_link_out_of_the_workspace_is_not_followed(study, form):
    root, path = study
    outside = root.parent / "outside"
    cask(root, "pack")
    os.replace(jsonl.packed(path), outside)
    (jsonl.packed(path) if form == "packed" else path).symlink_to(outside)
    failed = {r.id: r for r in verify(root, STUDY, require="L0").failed}
    assert "leads out of the workspace" in failed["V25"].details[0]


def test_a_dangling_link_beside_the_packed_form_counts_as_there(study):
    root, path = study
    cask(root, "pack")
    path.symlink_to(path.with_name("nowhere"))
    failed = {r.id: r for r in verify(root, STUDY, require="L0").failed}
    assert "one of them must go" in failed["V25"].details[0]


def test_the_ledger_has_no_packed_form(study):
    root, _ = study
    ledger = root / "prereg" / "ledger.jsonl"
    (ledger.with_name("ledger.jsonl.gz")).write_bytes(gzip.compress(ledger.read_bytes()))
    assert verify(root, STUDY, require="L0").exit_code == 0
    ledger.unlink()
    assert verify(root, STUDY, require="L0").exit_code == 1
    assert "no study is registered" in cask(root, "status").output
