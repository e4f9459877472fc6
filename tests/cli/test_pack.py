"""Packed records: everything reads them as before, and nothing is lost on the way."""

import gzip
import shutil

import pytest
from click.testing import CliRunner
from simulator import STUDY, build

from cask_eval import jsonl
from cask_eval.cli import cli
from cask_eval.errors import CaskError, DriftError, RecordError, StateError
from cask_eval.records.store import RecordStore


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


def test_nothing_is_added_to_a_packed_file(study):
    root, path = study
    cask(root, "pack")
    with RecordStore(path).open() as store, pytest.raises(StateError, match="nothing can be added"):
        store.append([next(RecordStore(path).read()).model_copy(update={"sample": 9})])


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


def test_a_bomb_is_cut_off(study):
    root, path = study
    path.unlink()
    with gzip.open(jsonl.packed(path), "wb", 9) as f:
        for _ in range(64):
            f.write(bytes(1 << 20))
    with pytest.raises(RecordError, match="holds more than 1000000 bytes"):
        jsonl.unpack(jsonl.packed(path), 1_000_000)
