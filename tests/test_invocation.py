"""Command lines and commits, as they may be published."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cask_eval.invocation import argv, commit


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["register", "prereg/x.yaml"], ["register", "prereg/x.yaml"]),
        (["register", "{root}/prereg/x.yaml", "--device", "cuda"], ["register", "prereg/x.yaml", "--device", "cuda"]),
        (["--data", "/home/me/sets/math500", "tune"], ["--data", "math500", "tune"]),
        (["--data=/home/me/sets", "tune"], ["--data=sets", "tune"]),
        (["-C", "{root}", "confirm", "--yes", "0f3a"], ["-C", ".", "confirm", "--yes", "0f3a"]),
        (["--data", "~/sets/x.jsonl"], ["--data", "x.jsonl"]),
        (["--data", "../../me/sets"], ["--data", "sets"]),
        (["tune", "--ray", "10.1.2.3:6379", "--slots", "8"], ["tune", "--ray", "ADDRESS", "--slots", "8"]),
        (["tune", "--ray=10.1.2.3:6379"], ["tune", "--ray=ADDRESS"]),
        (["tune", "--ray", "auto"], ["tune", "--ray", "auto"]),
        (["amend", "--reason", "1/2 of the budget"], ["amend", "--reason", "1/2 of the budget"]),
    ],
)
def test_paths_are_relative_or_names(tmp_path, typed, kept):
    assert argv([t.format(root=tmp_path) for t in typed], tmp_path) == ["cask-eval", *kept]


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_and_whether_anything_differs_from_it(tmp_path):
    assert commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) is None  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("1")
    assert commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head}+changes"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) is None
