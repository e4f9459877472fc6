"""A study whose records lie in segments verifies like any other, also when there are more records than are kept; and
what happens to a segment is found and named."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from simulator import FIDELITY, PROTOCOL, SEVERAL, STUDY, Author, Forger, build, committed, read_lines, write_lines

from cask_eval.bundle.write import export
from cask_eval.cli import cli
from cask_eval.decide.derive import derive
from cask_eval.errors import CaskError, DriftError, RecordError
from cask_eval.records import segments
from cask_eval.records.model import Record
from cask_eval.records.store import RecordStore
from cask_eval.verify import recorded
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.run import verify
from cask_eval.workspace import Workspace

FULL = 30


def made(folder: Path, text: str | None = None) -> Path:
    root = folder / "ws"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "FULL_RECORDS", FULL)
        inner = RecordStore.append

        def some(self, records):
            """The simulator adds a hundred at once, which would be one segment."""
            for start in range(0, len(records), 20):
                inner(self, records[start : start + 20])

        patch.setattr(RecordStore, "append", some)
        build(root, *([text] if text else []))
    return root


@pytest.fixture(scope="module")
def honest_segmented(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("segmented"))


@pytest.fixture
def root(honest_segmented, tmp_path) -> Path:
    return Path(shutil.copytree(honest_segmented, tmp_path / "ws"))


@pytest.fixture(params=["kept", "read again"])
def kept(request, monkeypatch):
    """Whether the records are kept, or parsed again whenever they are asked for."""
    if request.param == "read again":
        monkeypatch.setattr(recorded, "KEPT", 0)


def place(root: Path, number: int, phase: str = "heldout") -> Path:
    return segments.place(Workspace(root).records(STUDY, phase), number)


def failed(root: Path) -> dict[str, str]:
    return {r.id: " ".join(r.details) for r in verify(root, STUDY, require="L0").failed}


def replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_it_verifies(root, kept):
    verdict = verify(root, STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines
    events = read_lines(root / "prereg/ledger.jsonl")
    close = next(e["payload"] for e in events if e["event"] == "close")
    assert len(close["records"]["segments"]) >= 4
    assert all(FULL <= s["count"] < 2 * FULL for s in close["records"]["segments"])


@pytest.mark.parametrize("text", [SEVERAL, FIDELITY], ids=["several", "fidelity"])
def test_it_verifies_as_the_study_in_one_file_does(text, tmp_path, monkeypatch):
    """Every line the same, be the records kept or read again."""
    build(tmp_path / "one" / "ws", text)
    whole = verify(tmp_path / "one" / "ws", STUDY, require="L0").lines
    root = made(tmp_path / "several", text)
    one, several = (Evidence.load(Workspace(r), STUDY) for r in (tmp_path / "one" / "ws", root))
    assert several.close.records.segments and not one.close.records.segments
    assert several.close.records.merkle_root == one.close.records.merkle_root
    assert verify(root, STUDY, require="L0").lines == whole
    monkeypatch.setattr(recorded, "KEPT", 0)
    assert verify(root, STUDY, require="L0").lines == whole
    assert isinstance(Evidence.load(Workspace(root), STUDY).heldout.records, recorded.Again)


def test_without_the_indexes(root):
    """They are a convenience of the writer: no verification reads them."""
    for path in root.rglob("*.index"):
        path.write_bytes(b"{}")
    assert not failed(root)
    for path in root.rglob("*.index"):
        path.unlink()
    assert not failed(root)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("phase", ["dev", "heldout"])
def test_a_damaged_segment_is_named(root, number, phase, kept):
    if not place(root, number, phase).exists():
        pytest.skip("the dev split has fewer")
    replace(place(root, number, phase), b'"prompt_tokens":14', b'"prompt_tokens":15')
    said = failed(root)["V04"]
    assert f"reports/sim/{phase}.segments/0000{number}.jsonl does not have the Merkle root" in said
    others = {1, 2, 3} - {number}
    assert not any(f"{phase}.segments/0000{other}.jsonl" in said for other in others)


def test_a_damaged_line_of_a_segment_is_named(root, kept):
    replace(place(root, 2), b'"correct":true', b'"correct":1')
    said = failed(root)
    assert "reports/sim/heldout.segments/00002.jsonl:" in said["V25"] and "00002.jsonl holds" in said["V04"]


def test_a_torn_segment_is_named(root, kept):
    path = place(root, 3)
    path.write_bytes(path.read_bytes()[:-30])
    assert "heldout.segments/00003.jsonl: the last line is incomplete" in failed(root)["V25"]


def test_damage_of_the_open_segment_is_not_that_of_a_sealed_one(root, kept):
    replace(Workspace(root).records(STUDY, "heldout"), b'"prompt_tokens":14', b'"prompt_tokens":15')
    said = failed(root)["V04"]
    assert "does not have the Merkle root that close commits to" in said and ".segments/" not in said


def test_segments_that_changed_places(root, kept):
    one, two = place(root, 1), place(root, 2)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    said = failed(root)
    assert said.keys() >= {"V04"} and "00001.jsonl" in said["V04"] and "00002.jsonl" in said["V04"]


@pytest.mark.parametrize("number", [1, 3])
def test_a_segment_that_is_gone(root, number):
    place(root, number).unlink()
    assert f"reports/sim/heldout.segments/0000{number}.jsonl: this segment is gone" in failed(root)["V25"]


def test_the_last_segment_gone_with_its_index(root, kept):
    last = segments.sealed(Workspace(root).records(STUDY, "heldout"))[-1]
    last.unlink()
    segments.beside(last).unlink()
    said = failed(root)
    assert "which close commits to, is not there" in said["V04"] and "have no record" in said["V11"]


def test_a_segment_too_many(root, kept):
    count = len(segments.sealed(Workspace(root).records(STUDY, "heldout")))
    place(root, count + 1).write_bytes(place(root, 1).read_bytes())
    said = failed(root)
    assert f"0000{count + 1}.jsonl is there, close commits to {count} segments" in said["V04"]
    assert "come twice" in said["V11"]


def test_segments_where_the_ledger_knows_of_none(tmp_path):
    build(tmp_path / "ws")
    store = RecordStore(Workspace(tmp_path / "ws").records(STUDY, "heldout"))
    first, *rest = store.path.read_bytes().splitlines(keepends=True)
    segments.folder(store.path).mkdir()
    place(tmp_path / "ws", 1).write_bytes(first)
    store.path.write_bytes(b"".join(rest))
    assert "00001.jsonl is there, dev_run" not in failed(tmp_path / "ws")["V04"]
    assert "00001.jsonl is there, close commits to 0 segments" in failed(tmp_path / "ws")["V04"]


def test_one_file_where_the_ledger_knows_of_segments(root, kept):
    """The root is the same, and what the ledger says of segments is checked all the same."""
    path = Workspace(root).records(STUDY, "heldout")
    lines = [line for p in RecordStore(path).files for line in p.read_bytes().splitlines(keepends=True)]
    shutil.rmtree(segments.folder(path))
    path.write_bytes(b"".join(lines))
    said = failed(root)
    assert said.keys() == {"V04"} and "segment 1 of reports/sim/heldout.jsonl" in said["V04"]
    assert "does not have the Merkle root" not in said["V04"]


def signed(root: Path) -> Forger:
    """A forger of a study in segments, whose ledger names them as they are now: all digests that an author can make."""
    space = Workspace(root)
    forger = Forger.__new__(Forger)
    forger.space, forger.protocol_file = space, (space.root / "prereg/sim.yaml").read_bytes()
    forger.events = read_lines(space.ledger)
    for phase in ("dev", "heldout"):
        files = RecordStore(space.records(STUDY, phase)).files
        setattr(forger, phase, [r for p in files for r in read_lines(p)])
    commits = {}
    for phase in ("dev", "heldout"):
        found = committed(getattr(forger, phase), phase)
        parts = [read_lines(p) for p in RecordStore(space.records(STUDY, phase)).files[:-1]]
        found["segments"] = [{k: committed(part, phase)[k] for k in ("count", "merkle_root")} for part in parts]
        commits[phase] = found
    forger.event("dev_run")["records"] = commits["dev"]
    sessions = [e["payload"] for e in forger.events if e["event"] == "records"]
    sessions[-1]["records"] = forger.event("close")["records"] = commits["heldout"]
    forger.chain()
    write_lines(space.ledger, forger.events)
    return forger


def test_a_second_record_of_a_trial_in_another_segment(root, kept):
    """With every digest made again; the better of two answers must not hide in another file."""
    one, two = place(root, 1), place(root, 3)
    first = one.read_bytes().splitlines(keepends=True)[0]
    two.write_bytes(two.read_bytes() + first.replace(b'"correct":false', b'"correct":true'))
    signed(root)
    said = failed(root)
    assert "come twice" in said["V11"] and "appears twice" in said["V21"] and "V04" not in said


def test_what_changed_while_it_was_verified(root, monkeypatch):
    monkeypatch.setattr(recorded, "KEPT", 0)
    evidence = Evidence.load(Workspace(root), STUDY)
    assert len(list(evidence.heldout.records)) == len(evidence.heldout.rows) == 240
    replace(place(root, 2), b'"correct":true', b'"correct":null')
    with pytest.raises(RecordError, match=r"00002\.jsonl: was changed while it was verified"):
        list(evidence.heldout.records)
    replace(place(root, 2), b'"correct":null', b'"correct":false')
    with pytest.raises(RecordError, match=r"00002\.jsonl: was changed while it was verified"):
        list(evidence.heldout.records)


def test_a_folder_of_segments_that_is_a_link(root, tmp_path):
    folder = segments.folder(Workspace(root).records(STUDY, "heldout"))
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    assert "heldout.segments: is a link" in failed(root)["V25"]


def cask(*args):
    result = CliRunner().invoke(cli, [str(a) for a in args], standalone_mode=False)
    if isinstance(result.exception, CaskError):
        raise result.exception
    return result


@pytest.mark.parametrize("packed", [False, True])
def test_bundles_hold_the_segments(root, tmp_path, packed):
    before = verify(root, STUDY, require="L0").lines
    if packed:
        cask("-C", root, "pack")
        assert not list(root.rglob("*.index")) and not list((root / "reports").rglob("*.jsonl"))
        assert "packed already" in cask("-C", root, "pack").output
        assert verify(root, STUDY, require="L0").lines == before
    export(Workspace(root), STUDY, tmp_path / "b.zip")
    held = set(zipfile.ZipFile(tmp_path / "b.zip").namelist())
    end = ".gz" if packed else ""
    assert {f"reports/sim/heldout.segments/00001.jsonl{end}", f"reports/sim/heldout.jsonl{end}"} <= held
    assert not [name for name in held if name.endswith(".index")]
    sent = cask("verify", tmp_path / "b.zip", "--require", "L0")
    assert sent.return_value == 0 and sent.output == cask("-C", root, "verify", "--require", "L0").output


def test_a_packed_segment_that_is_damaged_is_named(root):
    cask("-C", root, "pack")
    path = Path(f"{place(root, 2)}.gz")
    path.write_bytes(path.read_bytes()[:-9])
    assert "heldout.segments/00002.jsonl.gz: cannot be unpacked" in failed(root)["V25"]


def test_the_analysis_is_made_from_all_segments(root):
    space = Workspace(root)
    before = json.loads(space.analysis(STUDY).read_bytes())
    space.analysis(STUDY).unlink()
    derive(space, STUDY)
    assert json.loads(space.analysis(STUDY).read_bytes()) == before and not failed(root)
    replace(place(root, 1), b'"correct":true', b'"correct":false')
    with pytest.raises(DriftError, match="differs from what was closed"):
        derive(space, STUDY)


def test_an_amended_study_keeps_its_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "FULL_RECORDS", FULL)
    root = tmp_path / "ws"
    author = Author(root)
    author.register(PROTOCOL.replace('"0.5", "1.0"', '"1.0"'))
    author.tune()
    author.amend(PROTOCOL)
    author.tune()
    author.confirm()
    author.analyse()
    assert segments.sealed(Workspace(root).records(STUDY, "dev", 1))
    assert not failed(root)
    assert all(isinstance(r, Record) for r in Evidence.load(Workspace(root), STUDY).dev.records)
