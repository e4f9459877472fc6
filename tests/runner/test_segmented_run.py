"""A real study whose records fill segments, stopped and taken up again, comes to what it comes to in one file."""

from __future__ import annotations

import pytest
from study_files import digits

from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.records import segments
from cask_eval.records.store import RecordStore
from cask_eval.runner.trials import Bench


def state(root):
    return StudyState.of(Ledger(root / "prereg" / "ledger.jsonl").events(), "small")


def store(root, phase):
    return RecordStore(root / "reports" / "small" / f"{phase}.jsonl")


def test_it_comes_to_the_same(registered, closed, copy, cask, monkeypatch):
    monkeypatch.setattr(segments, "FULL_RECORDS", 4)
    root = copy(registered)
    cask("-C", root, "tune", "--device", "cpu")
    assert len(segments.sealed(store(root, "dev").path)) == 4
    inner, made = Bench._record, []

    def stopping(self, *args, **kwargs):
        if len(made) == 9:
            raise KeyboardInterrupt
        made.append(inner(self, *args, **kwargs))
        return made[-1]

    confirm = ("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "_record", stopping)
        with pytest.raises(BaseException):
            cask(*confirm)
    assert len(store(root, "heldout").done) == 9
    cask(*confirm)
    ours, whole = state(root), state(closed)
    assert [s.records.count for _, s in ours.sessions] == [9, 30]
    assert [len(s.records.segments) for _, s in ours.sessions] == [2, 7]
    assert ours.close[1].records.merkle_root == whole.close[1].records.merkle_root
    assert ours.dev_run[1].records.merkle_root == whole.dev_run[1].records.merkle_root
    assert ours.select[1] == whole.select[1]
    result = cask("-C", root, "verify", "--require", "L0")
    assert result.return_value == 0, result.output
