"""What a verifier keeps of records: rows by columns in few bytes, and no more read of several files than of one."""

from __future__ import annotations

import gc
import gzip
import random
import tracemalloc
from pathlib import Path

import pytest
from simulator import STUDY, Forger, build

from cask_eval.canonical import leaf_hash
from cask_eval.decide.arms import sort_records
from cask_eval.errors import RecordError
from cask_eval.records import store
from cask_eval.records.model import RegionsRecord
from cask_eval.verify import recorded
from cask_eval.verify.checks import v04_roots
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.recorded import Part, Rows
from cask_eval.verify.run import verify
from cask_eval.workspace import Workspace


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    root = tmp_path_factory.mktemp("recorded") / "ws"
    build(root)
    return Evidence.load(Workspace(root), STUDY)


def leaf(record) -> bytes:
    return leaf_hash(store.canonical_lines(record)[1])


def test_rows_are_what_was_recorded(evidence):
    records, rows = evidence.heldout.records, evidence.heldout.rows
    assert len(rows) == len(records) == 240 and list(rows) == rows[:] == [rows[i] for i in range(240)]
    assert rows[-1] == rows[239] and pytest.raises(IndexError, rows.__getitem__, 240)
    for row, r in zip(rows, records, strict=True):
        about = (r.study, r.registration, r.grade.grader, r.status == "failed")
        assert (row.key, row.about, row.problem_digest, row.seed, row.leaf) == (
            r.key, about, r.problem_digest, r.seed, leaf(r)
        )  # fmt: skip
        assert bool(row.output) == bool(r.output_ids) and row.drawn.startswith(bytes.fromhex(r.seed))
    ids = {tuple(r.output_ids) for r in records if r.output_ids}
    assert len({row.output for row in rows if row.output}) == len(ids)
    assert sum(rows.abouts.values()) == 240 and [about.failed for about in rows.abouts] == [False, True]
    assert list(rows.in_order()) == sorted(r.key for r in records)


def test_roots_of_what_came_first(evidence):
    records = list(evidence.heldout.records)
    random.Random(3).shuffle(records)
    rows = Rows()
    for r in records:
        rows.append(r, leaf(r))
    found = rows.roots([0, 1, 100, 240, 100])
    assert found == {n: store.commit(records[:n], "x").merkle_root for n in (0, 1, 100, 240)}
    assert rows.roots([240], 57) == {240: store.commit(records[57:], "x").merkle_root}


def test_a_row_takes_a_hundred_bytes(evidence):
    """Beside texts that many share; objects for each took four times as many."""
    record, count = evidence.heldout.records[0], 20_000
    rows = Rows()
    gc.collect()
    tracemalloc.start()
    for i in range(count):
        rows.append(record.model_copy(update={"problem": f"p{i % 100}", "sample": i // 100, "seed": f"{i:032x}"}),
                    i.to_bytes(32, "big"))  # fmt: skip
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == count and size < 110 * count


def test_a_trial_of_the_analysis_takes_fifty_bytes(evidence):
    """Output lengths and regions that all differ, which no sharing makes small."""
    protocol = evidence.protocol.model_copy(
        update={"generation": evidence.protocol.generation.model_copy(update={"samples": 64})}
    )
    arms = list(evidence.protocol.heldout_arms(evidence.select.survivors))
    first, ids = next(r for r in evidence.heldout.records if r.status == "finished"), [f"p{i}" for i in range(50)]
    keys = [(c.name, a, p, s) for c in protocol.cells for a in arms for p in ids for s in range(64)]

    def each():
        for i, (cell, arm, problem, sample) in enumerate(keys):
            own = RegionsRecord(bins=1000 + i, empty=i, longest=1)
            update = {"cell": cell, "arm": arm, "problem": problem, "sample": sample}
            yield first.model_copy(update={**update, "output_tokens": i, "regions": own})

    gc.collect()
    tracemalloc.start()
    found = sort_records(protocol, evidence.registration, each(), ids, arms)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 50 * len(keys)
    last = found[keys[-1][:2]][keys[-1][2]][-1]
    assert (last.output_tokens, last.regions[:2]) == (len(keys) - 1, (999 + len(keys), len(keys) - 1))


def test_sessions_cost_what_they_commit_to(tmp_path, monkeypatch):
    """Not all rows for each of them."""
    build(tmp_path / "ws")
    forger = Forger(tmp_path / "ws")
    sessions = [e for e in forger.events if e["event"] == "records"]
    evidence = Evidence.load(Workspace(tmp_path / "ws"), STUDY)
    committed = evidence.close.records.count + sum(e["payload"]["records"]["count"] for e in sessions[:-1])
    looked = []
    inner = Rows._leaf
    monkeypatch.setattr(Rows, "_leaf", lambda self, at: looked.append(at) or inner(self, at))
    assert v04_roots.v04.run(evidence).status == "pass"
    assert len(looked) == committed + evidence.dev_run.records.count


def parts(folder: Path, evidence: Evidence, counts: list[int], packed: bool = True) -> list[Part]:
    """Segments with so many records each, which the ledger commits to."""
    lines, out = [store.line_of(r) + b"\n" for r in evidence.heldout.records], []
    for number, count in enumerate(counts):
        data, lines = b"".join(lines[:count]), lines[count:]
        file = folder / (f"{number}.jsonl" + (".gz" if packed else ""))
        file.write_bytes(gzip.compress(data) if packed else data)
        out.append(Part(file.name, file, count))
    return out


@pytest.mark.parametrize("packed", [True, False])
def test_all_files_together_are_bounded_in_bytes(tmp_path, evidence, monkeypatch, packed):
    found = parts(tmp_path, evidence, [60, 60, 60, 60], packed)
    size = sum(len(store.line_of(r)) + 1 for r in evidence.heldout.records)
    monkeypatch.setattr(recorded, "MAX_FILE", size // 2)
    monkeypatch.setattr(recorded, "MAX_RECORD", size // 240 + 1)
    assert len(recorded.load("x.jsonl", found, tmp_path, 240).rows) == 240
    monkeypatch.setattr(recorded, "MAX_RECORD", 1)
    with pytest.raises(RecordError, match=f"x.jsonl: with its segments it holds more than {size // 2} bytes"):
        recorded.load("x.jsonl", found, tmp_path, 240)


@pytest.mark.parametrize("packed", [True, False])
def test_all_files_together_are_bounded_in_records(tmp_path, evidence, monkeypatch, packed):
    """A ledger may say more of the segments than of all records."""
    monkeypatch.setattr(recorded, "SPARE", 20)
    found = parts(tmp_path, evidence, [60, 60, 60], packed)
    assert len(recorded.load("x.jsonl", found, tmp_path, 160).rows) == 180
    with pytest.raises(RecordError, match="with its segments it holds more than the 159 records that were committed"):
        recorded.load("x.jsonl", found, tmp_path, 159)


def test_no_records_are_kept_of_files_that_are_too_large_from_the_start(tmp_path, evidence, monkeypatch):
    found = parts(tmp_path, evidence, [120, 120], packed=False)
    size = sum(part.file.stat().st_size for part in found)
    monkeypatch.setattr(recorded, "KEPT", size - 1)
    kept = []
    monkeypatch.setattr(recorded, "_sharing", lambda record, known: kept.append(record) or record)
    assert isinstance(recorded.load("x.jsonl", found, tmp_path, 240).records, recorded.Again) and not kept
    monkeypatch.setattr(recorded, "KEPT", size)
    assert isinstance(recorded.load("x.jsonl", found, tmp_path, 240).records, tuple) and len(kept) == 240


def test_the_study_verifies(evidence):
    assert verify(evidence.workspace, STUDY, require="L0").exit_code == 0
