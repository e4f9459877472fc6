"""What a bundle holds, and that it verifies as the workspace does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from simulator import STUDY, Forger, line, read_lines

from cask_eval import jsonl
from cask_eval.bundle import form
from cask_eval.bundle.errors import BundleError
from cask_eval.bundle.write import export
from cask_eval.errors import CaskError, LedgerError, StateError
from cask_eval.splits.model import Manifest
from cask_eval.splits.store import write
from cask_eval.verify.run import verify
from cask_eval.workspace import Workspace

EVIDENCE = {"prereg/sim.yaml", "prereg/ledger.jsonl", "splits/sim-dev.json", "splits/sim-heldout.json",
            "reports/sim/dev.jsonl", "reports/sim/heldout.jsonl", "reports/sim/analysis.json"}  # fmt: skip


def names(path: Path) -> set[str]:
    return set(zipfile.ZipFile(path).namelist())


def test_a_bundle_holds_what_verification_needs_and_nothing_else(root, tmp_path, cask):
    """Also where a workspace is full of other things."""
    for other in ("reports/sim/report.html", "reports/other/heldout.jsonl", "splits/other.json", "notes.txt"):
        (root / other).parent.mkdir(exist_ok=True)
        (root / other).write_text("other")
    cask("-C", root, "export", STUDY, "-o", tmp_path / "b.zip")
    assert names(tmp_path / "b.zip") == EVIDENCE | {"bundle.json", "README.txt"}
    assert zipfile.ZipFile(tmp_path / "b.zip").testzip() is None


@pytest.mark.parametrize("packed", [False, True])
def test_a_bundle_verifies_as_the_workspace_does(root, tmp_path, cask, packed):
    if packed:
        cask("-C", root, "pack")
    cask("-C", root, "export", "-o", tmp_path / "b.zip")
    here = cask("-C", root, "verify", "--require", "L0")
    sent = cask("verify", tmp_path / "b.zip", "--require", "L0")
    assert here.return_value == sent.return_value == 0 and here.output == sent.output
    assert cask("verify", tmp_path / "b.zip").return_value == 3
    # Unpacked, it is a workspace, and a bundle as well.
    zipfile.ZipFile(tmp_path / "b.zip").extractall(tmp_path / "u")
    assert cask("verify", tmp_path / "u", "--require", "L0").output == here.output
    assert cask("-C", tmp_path / "u", "verify", "--require", "L0").output == here.output


OPENED: list[Path] | None = None


@sys.addaudithook  # it cannot be taken away again, so it only listens when it is asked to
def _listen(event: str, args: tuple) -> None:
    if OPENED is not None and event == "open" and isinstance(args[0], (str, os.PathLike)):
        OPENED.append(Path(args[0]))


def test_verification_reads_nothing_that_the_bundle_leaves_behind(root, tmp_path, monkeypatch):
    done = export(Workspace(root), STUDY, tmp_path / "b.zip")
    read: list[Path] = []
    monkeypatch.setattr(sys.modules[__name__], "OPENED", read)
    verify(root, STUDY)
    monkeypatch.setattr(sys.modules[__name__], "OPENED", None)
    assert {p.relative_to(root).as_posix() for p in read if p.is_relative_to(root)} == set(done.files) - {"README.txt"}


def test_the_same_study_makes_the_same_bytes(root, tmp_path, sent):
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 10**6,) * 2)
        path.chmod(0o700)
    done = export(Workspace(root), STUDY, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == sent and done.size == len(sent)


def test_what_export_says_is_so(root, tmp_path, cask):
    head = read_lines(root / "prereg/ledger.jsonl")[-1]["hash"]
    said = cask("-C", root, "export", "-o", tmp_path / "b.zip").output
    size = (tmp_path / "b.zip").stat().st_size
    assert f"{size:,} bytes" in said and f"ledger head {head}" in said
    out = json.loads(cask("-C", root, "export", "-o", tmp_path / "b.zip", "--force", "--json").output)
    assert (out["study"], out["bytes"], out["head"]) == (STUDY, size, head)
    readme = zipfile.ZipFile(tmp_path / "b.zip").read("README.txt").decode()
    assert head in readme and "cask-eval verify" in readme
    assert cask("verify", tmp_path / "b.zip", "--head", head, "--require", "L0").return_value == 0
    assert cask("verify", tmp_path / "b.zip", "--head", "sha256:" + "0" * 64).return_value == 1


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum")
def test_the_list_in_the_readme_is_one_for_sha256sum(root, tmp_path):
    export(Workspace(root), STUDY, tmp_path / "b.zip")
    zipfile.ZipFile(tmp_path / "b.zip").extractall(tmp_path / "u")
    lines = (tmp_path / "u/README.txt").read_text().split("lines):\n\n")[1]
    done = subprocess.run(["sha256sum", "-c", "--strict"], input=lines.encode(), cwd=tmp_path / "u", check=False)
    assert done.returncode == 0 and lines.count("\n") == len(EVIDENCE)


def test_an_existing_file_is_kept(root, tmp_path, cask):
    out = tmp_path / "b.zip"
    cask("-C", root, "export", "-o", out)
    with pytest.raises(CaskError, match="is there already.*--force") as caught:
        cask("-C", root, "export", "-o", out)
    assert caught.value.exit_code == 2
    cask("-C", root, "export", "-o", out, "--force")
    ledger = root / "prereg/ledger.jsonl"
    before = ledger.read_bytes()
    with pytest.raises(CaskError, match="only a bundle is overwritten"):
        cask("-C", root, "export", "-o", ledger, "--force")
    assert ledger.read_bytes() == before


def test_a_failed_export_leaves_nothing(root, tmp_path, monkeypatch):
    monkeypatch.setattr(form, "MAX_BYTES", 100_000)
    with pytest.raises(CaskError, match="cask-eval pack"):
        export(Workspace(root), STUDY, tmp_path / "b.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["ws"]


@pytest.mark.parametrize("gone", sorted(EVIDENCE - {"prereg/ledger.jsonl"}))
def test_a_study_with_a_missing_file_is_not_exported(root, tmp_path, cask, gone):
    (root / gone).unlink()
    with pytest.raises(StateError, match="is not there; the ledger names it"):
        cask("-C", root, "export", "-o", tmp_path / "b.zip")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("target", ["inside", "outside"])
@pytest.mark.parametrize("what", ["reports/sim/heldout.jsonl", "reports/sim", "prereg/ledger.jsonl", "splits"])
def test_links_are_not_followed(root, tmp_path, cask, target, what):
    place = root / "elsewhere" if target == "inside" else tmp_path / "elsewhere"
    shutil.move(root / what, place)
    (root / what).symlink_to(place)
    with pytest.raises(CaskError, match="link|leads out of the workspace"):
        cask("-C", root, "export", "-o", tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_a_damaged_study_is_not_exported(root, tmp_path, cask):
    ledger = root / "prereg/ledger.jsonl"
    good = ledger.read_bytes()
    ledger.write_bytes(good.replace(b'"expected":240', b'"expected":241'))
    with pytest.raises(LedgerError):
        cask("-C", root, "export", "-o", tmp_path / "b.zip")
    ledger.write_bytes(good + b'{"seq"')
    with pytest.raises(BundleError, match="last line is incomplete"):
        cask("-C", root, "export", "-o", tmp_path / "b.zip")
    ledger.write_bytes(good)
    (root / "reports/sim/heldout.jsonl.gz").write_bytes(b"")
    with pytest.raises(BundleError, match="one of them must go"):
        cask("-C", root, "export", "-o", tmp_path / "b.zip")


@pytest.mark.parametrize("name", ["splits/Sim-Dev.json", "splits/a b/../x.json", "splits/con.json", "splits/x?.json"])
def test_names_that_some_system_takes_for_another_are_not_exported(root, tmp_path, cask, name):
    forger = Forger(root)
    other = json.loads(json.dumps(forger.events[0]))
    other["payload"]["splits"]["dev"]["path"] = name
    forger.events.append({**other, "study": "other", "time": forger.events[-1]["time"]})
    forger.chain()
    forger.write()
    if ".." not in name:
        shutil.copy(root / "splits/sim-dev.json", root / name)
        with pytest.raises(CaskError, match="cannot"):
            cask("-C", root, "export", STUDY, "-o", tmp_path / "b.zip")
    else:
        cask("-C", root, "export", STUDY, "-o", tmp_path / "b.zip")
        assert names(tmp_path / "b.zip") == EVIDENCE | {"bundle.json", "README.txt"}


@pytest.mark.parametrize("events, held", [(1, 4), (2, 5), (4, 5), (5, 6), (7, 6)])
def test_an_unfinished_study_is_exported_when_it_is_named(root, tmp_path, cask, events, held):
    ledger = root / "prereg/ledger.jsonl"
    ledger.write_bytes(b"".join(line(e) + b"\n" for e in read_lines(ledger)[:events]))
    (root / "reports/sim/analysis.json").unlink()
    if events < 7:
        with pytest.raises(StateError, match="not closed"):
            cask("-C", root, "export", "-o", tmp_path / "b.zip")
    cask("-C", root, "export", STUDY, "-o", tmp_path / "b.zip")
    assert len(names(tmp_path / "b.zip")) == held + 2
    here = cask("-C", root, "verify", STUDY)
    assert here.return_value in (1, 3) and cask("verify", tmp_path / "b.zip").output == here.output


def test_a_study_that_is_not_there_is_not_exported(root, tmp_path, cask):
    with pytest.raises(StateError, match="no study 'another'"):
        cask("-C", root, "export", "another", "-o", tmp_path / "b.zip")
    with pytest.raises(StateError, match="is not registered"):
        export(Workspace(root), "another", tmp_path / "b.zip")


@pytest.fixture
def with_earlier(root) -> Path:
    """The ledger has an earlier study, which had consumed 19 of these problems, and records of it lie beside."""
    forger = Forger(root)
    earlier = json.loads(json.dumps(forger.events[:4]))
    for e in earlier:
        e.update(study="earlier", time=forger.events[0]["time"])
    part = json.loads(json.dumps({**forger.manifests["heldout"], "name": "part"}))
    part["items"].pop()
    part = Manifest.model_validate(part)
    part = part.model_copy(update={"merkle_root": part.root()})
    write(root / "splits/part.json", part)
    locks = earlier[0]["payload"]["splits"]
    locks["heldout"] = {"path": "splits/part.json", "digest": part.digest(), "merkle_root": part.merkle_root,
                        "count": 19}  # fmt: skip
    forger.events[:0] = earlier
    forger.chain()
    forger.write()
    (root / "reports/earlier").mkdir()
    shutil.copy(root / "reports/sim/dev.jsonl", root / "reports/earlier/dev.jsonl")
    return root


def test_other_studies_are_there_with_their_splits_but_not_their_records(with_earlier, tmp_path, cask):
    cask("-C", with_earlier, "export", STUDY, "-o", tmp_path / "b.zip")
    assert names(tmp_path / "b.zip") == EVIDENCE | {"bundle.json", "README.txt", "splits/part.json"}
    said = cask("verify", tmp_path / "b.zip", "--json").output
    assert "consumed 19 of these 20 problems before" in said
    assert said == cask("-C", with_earlier, "verify", STUDY, "--json").output


def test_another_study_of_the_ledger_can_be_asked_for(with_earlier, tmp_path, cask):
    cask("-C", with_earlier, "export", STUDY, "-o", tmp_path / "b.zip")
    result = cask("verify", tmp_path / "b.zip", "--study", "earlier")
    assert result.return_value in (1, 3) and "earlier: " in result.output
    with pytest.raises(CaskError, match="only a bundle needs it"):
        cask("-C", with_earlier, "verify", STUDY, "--study", "earlier")


def test_a_file_that_is_not_there_is_a_slip(tmp_path, cask):
    with pytest.raises(CaskError, match="there is no such file") as caught:
        cask("verify", tmp_path / "b.zip")
    assert caught.value.exit_code == 2


def test_the_temporary_folder_is_gone_afterwards(sent, tmp_path, cask, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    (tmp_path / "b.zip").write_bytes(sent)
    cask("verify", tmp_path / "b.zip")
    assert not list((tmp_path / "t").iterdir())


def test_packed_records_are_bundled_as_they_are(root, tmp_path, cask):
    cask("-C", root, "pack")
    path = jsonl.packed(root / "reports/sim/heldout.jsonl")
    cask("-C", root, "export", "-o", tmp_path / "b.zip")
    assert zipfile.ZipFile(tmp_path / "b.zip").read("reports/sim/heldout.jsonl.gz") == path.read_bytes()


def test_a_bundle_is_verified_without_torch_and_without_a_network(sent, tmp_path):
    (tmp_path / "b.zip").write_bytes(sent)
    code = """
import socket, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {"torch", "transformers", "tokenizers", "safetensors"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Wall())
def refuse(*args, **kwargs):
    raise AssertionError("network")
socket.socket.connect = socket.create_connection = refuse
sys.argv = ["cask-eval", "verify", "b.zip", "--require", "L0"]
from cask_eval.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0 and "adopt the candidate; nothing found wrong" in done.stdout, done.stderr
