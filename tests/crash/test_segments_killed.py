"""kill −9 at every point where a file is touched while segments are filled and sealed: what was written is there, and
the records go on to what they would have been."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from faults import Faults

from cask_eval.canonical import ZERO
from cask_eval.errors import CaskError
from cask_eval.records import segments
from cask_eval.records.model import GradeRecord, Record
from cask_eval.records.store import RecordStore

COUNT = 9


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(segments, "FULL_RECORDS", 2)


def record(number: int) -> Record:
    return Record(
        study="s", registration=ZERO, phase="dev", cell="m/b64", arm="baseline", problem=f"p{number}",
        problem_digest=ZERO, sample=0, seed="0" * 32, status="finished", prompt_tokens=3, output_tokens=1,
        output=str(number), output_ids=[1], residency=None,
        grade=GradeRecord(correct=True, extracted="1", how="box", grader="g/1"),
    )  # fmt: skip


def fill(path: Path) -> None:
    """Add what is not there yet, one record at a time."""
    with RecordStore(path).open() as store:
        for number in range(COUNT):
            if record(number).key not in store.done:
                store.append([record(number)])


def in_a_process(path: Path, faults: Faults) -> int:
    """How a process of its own ends that fills the store with these faults."""
    pid = os.fork()
    if not pid:
        status = 0
        try:
            faults.install()
            fill(path)
        except (OSError, CaskError):
            status = 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def points(root: Path) -> int:
    """How many points there are on the way."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        faults = Faults(str(root))
        faults.install()
        fill(root / "dev.jsonl")
        os.write(write, str(len(faults.names)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as f:
        return int(f.read())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("do, share", [("kill", 0.0), ("kill", 0.5), ("kill", 1.0), ("after", 0.5), ("hiccup", 0.5)])
def test_every_beginning_of_the_writes_goes_on(tmp_path, do, share):
    whole = tmp_path / "whole"
    whole.mkdir()
    total = points(whole)
    expected = RecordStore(whole / "dev.jsonl").commit(whole)
    assert len(expected.segments) == 4 and total > 40
    for at in range(1, total + 1):
        root = tmp_path / str(at)
        root.mkdir()
        path = root / "dev.jsonl"
        ended = in_a_process(path, Faults(str(root), at, do, share))
        assert ended == signal.SIGKILL or do == "hiccup"
        left = sorted(p.name for p in root.rglob("*.jsonl"))
        fill(path)
        store = RecordStore(path)
        assert [r.output for r in store.read()] == [str(n) for n in range(COUNT)], (at, left)
        found = store.commit(root)
        assert found == expected, (at, left)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_it_may_be_killed_again_and_again(tmp_path):
    """Each time a little later, so that whatever resumes is itself cut off."""
    path = tmp_path / "dev.jsonl"
    for at in (1, 2, 3, 5, 8, 13, 21) * 12:
        before = [r.output for r in RecordStore(path).read()] if _sound(path) else None
        if not in_a_process(path, Faults(str(tmp_path), at, "kill", 0.5)):
            break
        if before is not None and _sound(path):
            assert [r.output for r in RecordStore(path).read()][: len(before)] == before
    fill(path)
    assert [r.output for r in RecordStore(path).read()] == [str(n) for n in range(COUNT)]


def _sound(path: Path) -> bool:
    """Whether no line is incomplete, so that the records can be read without taking them."""
    try:
        list(RecordStore(path).read())
    except CaskError:
        return False
    return True
