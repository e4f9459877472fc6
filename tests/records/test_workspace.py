"""Where things lie, and that stored paths cannot leave the workspace."""

from __future__ import annotations

import pytest

from cask_eval.errors import CaskError
from cask_eval.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    (tmp_path / "work" / "prereg").mkdir(parents=True)
    return Workspace(tmp_path / "work")


def test_find_walks_up(workspace):
    deep = workspace.root / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("")
    for start in (workspace.root, deep, deep / "file", workspace.root / "prereg"):
        assert Workspace.find(start).root == workspace.root


def test_find_takes_the_nearest(workspace):
    inner = workspace.root / "inner"
    (inner / "prereg").mkdir(parents=True)
    assert Workspace.find(inner).root == inner


def test_find_needs_a_folder(tmp_path):
    (tmp_path / "prereg").write_text("a file, not a folder")
    with pytest.raises(CaskError, match="cask-eval init"):
        Workspace.find(tmp_path)


def test_paths(workspace):
    def rel(path):
        return path.relative_to(workspace.root).as_posix()

    assert rel(workspace.ledger) == "prereg/ledger.jsonl"
    assert rel(workspace.study("s")) == "reports/s"
    assert rel(workspace.records("s", "dev")) == "reports/s/dev.jsonl"
    assert rel(workspace.records("s", "heldout")) == "reports/s/heldout.jsonl"
    assert rel(workspace.analysis("s")) == "reports/s/analysis.json"
    with pytest.raises(ValueError, match="test"):
        workspace.records("s", "test")


def test_resolve_and_relative_are_inverse(workspace):
    path = workspace.resolve("splits/a b/ä.json")
    assert path == workspace.root / "splits" / "a b" / "ä.json"
    assert workspace.relative(path) == "splits/a b/ä.json"


@pytest.mark.parametrize(
    "rel", ["", "/etc/passwd", "../x", "a/../../x", "a/..", "..", r"a\b", "C:/x", "C:x", "a\0b", "//server/share"]
)
def test_resolve_refuses_to_leave(workspace, rel):
    with pytest.raises(CaskError, match="workspace"):
        workspace.resolve(rel)


def test_a_study_name_is_no_way_out(workspace):
    with pytest.raises(CaskError, match="workspace"):
        workspace.study("../../x")


def test_links(workspace, tmp_path):
    (tmp_path / "outside").mkdir()
    (workspace.root / "out").symlink_to(tmp_path / "outside")
    (workspace.root / "in").symlink_to(workspace.root / "prereg")
    with pytest.raises(CaskError, match="leads out"):
        workspace.resolve("out/x.json")
    assert workspace.resolve("in/x.json").name == "x.json"


def test_relative_refuses_what_lies_outside(workspace, tmp_path):
    with pytest.raises(CaskError, match="lies outside"):
        workspace.relative(tmp_path / "x")
    # A sibling whose name begins alike is outside too.
    with pytest.raises(CaskError, match="lies outside"):
        workspace.relative(tmp_path / "workspace2" / "x")
