"""What the full cache says on the dev split is generated once, however many budgets there are."""

import json
import shutil

import pytest
from study_files import digits, replace

from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.records.store import RecordStore, evidence_of
from cask_eval.runner import full, steps
from cask_eval.runner.trials import Bench

# Of the fresh workspace: six dev problems, ten held-out ones, one model.
DEV, BUDGETS = 6, 2


class Cut(Exception):
    pass


@pytest.fixture(scope="module")
def registered(fresh, tmp_path_factory, cask):
    root = shutil.copytree(fresh, tmp_path_factory.mktemp("full") / "ws")
    text = (root / "prereg" / "small.yaml").read_text()
    baseline = text[text.index("baseline:\n") : text.index("candidate:\n")]
    any_cache = 'tolerance: "0.03", min_active: "0", prompt_policies: any'
    changes = {baseline: "baseline: {preset: fullkv}\n", "budgets: [64]": "budgets: [64, 96]"}
    replace(root, "small", {**changes, 'tolerance: "0.03"': any_cache})
    cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    return root


@pytest.fixture
def ran(monkeypatch):
    """(phase, cell, arm, configuration) of every trial that was really run."""
    found, results = [], Bench.results

    def watched(self, batch, *rest):
        for records, tokens in results(self, batch, *rest):
            found.extend(r.key[:4] for r in records)
            yield records, tokens

    monkeypatch.setattr(Bench, "results", watched)
    return found


def tune(registered, root, cask):
    shutil.copytree(registered, root)
    cask("-C", root, "tune", "--device", "cpu")
    return root


def evidence(root):
    records = RecordStore(root / "reports" / "small" / "dev.jsonl").read()
    return {r.key: evidence_of(r) for r in records}


def of_baseline(keys):
    return [key for key in keys if key[2] == "baseline"]


def test_outputs_of_one_budget_are_those_of_all(registered, ran, tmp_path, cask, monkeypatch):
    root = tune(registered, tmp_path / "once", cask)
    once = evidence(root)
    assert len(of_baseline(ran)) == DEV and len(of_baseline(once)) == BUDGETS * DEV
    # The same registration without it: every trial runs, and leaves the same evidence.
    monkeypatch.setattr(steps, "output_digest", lambda *_: None)
    ran.clear()
    assert evidence(tune(registered, tmp_path / "every", cask)) == once
    assert len(of_baseline(ran)) == BUDGETS * DEV


def test_held_out_trials_are_run_and_the_study_verifies(registered, ran, tmp_path, cask):
    root = tune(registered, tmp_path / "ws", cask)
    cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    assert len([key for key in of_baseline(ran) if key[0] == "heldout"]) == BUDGETS * 10
    verdict = json.loads(cask("-C", root, "verify", "--require", "L0", "--json").stdout)
    assert verdict["exit_code"] == 0, verdict


def test_what_failed_is_run_again_and_what_is_there_is_kept(registered, ran, tmp_path, cask, monkeypatch):
    """The first budget fails on one problem; of the second, another trial is there from a run that was cut off."""
    results, cut = Bench.results, []

    def faulty(self, batch, *rest):
        for records, tokens in results(self, batch, *rest):
            if batch.cell.budget == 64 and records[0].problem.endswith("/3"):
                fault = {"kind": "method", "error": "ValueError", "message": "made up"}
                broken = {"status": "failed", "failure": fault, "residency": None, "stages": None, "regions": None,
                          "output": "", "output_ids": [], "output_tokens": 0}  # fmt: skip
                records = [records[0].model_validate({**records[0].model_dump(), **broken})]
            yield records, tokens
            if batch.cell.budget == 96 and not cut:
                cut.append(1)
                raise Cut

    monkeypatch.setattr(Bench, "results", faulty)
    root = shutil.copytree(registered, tmp_path / "ws")
    with pytest.raises(Cut):  # in the trial that had failed at the first budget
        cask("-C", root, "tune", "--device", "cpu")
    cask("-C", root, "tune", "--device", "cpu")
    cells = [key[1] for key in of_baseline(ran)]
    assert (cells.count("chain-s/b64"), cells.count("chain-s/b96")) == (DEV, 1)
    failed = [r.key for r in RecordStore(root / "reports" / "small" / "dev.jsonl").read() if r.failure]
    assert [key[1] for key in of_baseline(failed)] == ["chain-s/b64"]


def test_only_greedy_outputs_of_the_full_cache_on_dev(registered):
    state = StudyState.of(Ledger(registered / "prereg" / "ledger.jsonl").events(), "small")
    locked = state.register[1]
    from cask_eval.protocol.model import Cell
    from cask_eval.runner.trials import Batch

    def batch(preset="fullkv", budget=64, phase="dev"):
        choice = type("Choice", (), {"preset": preset, "params": {}})
        return Batch(phase, Cell(model="chain-s", budget=budget), "baseline", "", choice)

    def changed(**fields):
        return locked.model_copy(update={"protocol": {**locked.protocol, **fields}})

    same = full.output_digest(locked, batch())
    assert same is not None and full.output_digest(locked, batch(budget=96)) == same
    assert full.output_digest(locked, batch("triattention")) is None
    assert full.output_digest(locked, batch(phase="heldout")) is None
    generation = locked.protocol["generation"]
    assert full.output_digest(changed(generation={**generation, "temperature": "0.6"}), batch()) is None
    assert full.output_digest(changed(test={**locked.protocol["test"], "endpoint": "nll"}), batch()) is None
    assert full.output_digest(changed(generation={**generation, "max_new_tokens": 9}), batch()) != same
    other = [m.model_copy(update={"digest": "sha256:" + "1" * 64}) for m in locked.models]
    assert full.output_digest(locked.model_copy(update={"models": other}), batch()) != same
