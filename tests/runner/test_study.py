"""register → tune → confirm → verify on a real model, and everything that must be refused on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from study_files import digits, replace

from cask_eval.decide.rehearsal import rehearse
from cask_eval.errors import (
    CaskError,
    ConsumedError,
    DriftError,
    MethodError,
    ModelError,
    ProtocolError,
    SplitError,
    StateError,
)
from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.records.store import RecordStore
from cask_eval.workspace import Workspace


def state(root):
    return StudyState.of(Ledger(root / "prereg" / "ledger.jsonl").events(), "small")


def records(root, phase):
    return list(RecordStore(root / "reports" / "small" / f"{phase}.jsonl").read())


def test_a_study_runs_from_protocol_to_verdict(closed, cask):
    assert state(closed).name == "closed"
    heldout = records(closed, "heldout")
    assert len(heldout) == 1 * 3 * 10
    assert {r.arm for r in heldout} == {"baseline", "candidate", "random"}
    document = json.loads((closed / "reports" / "small" / "analysis.json").read_text())
    assert document["branch"] in "AC" and document["cells"][0]["n"] == 10
    by_hand = sum(r.grade.correct for r in heldout if r.arm == "candidate")
    assert document["arms"]["chain-s/b64"]["candidate"]["correct"] == by_hand
    result = cask("-C", closed, "verify", "--require", "L0")
    assert result.return_value == 0, result.output
    assert cask("-C", closed, "verify").return_value == 3
    page = (closed / "reports" / "small" / "report.html").read_text()
    assert document["decision"] in page


def test_budgets_are_matched_on_dev_and_arms_share_their_seeds(closed):
    arms = state(closed).select[1].arms["chain-s/b64"]
    assert {a.schedule.budget for a in arms.values()} == {64}
    seeds = {(r.problem, r.arm): r.seed for r in records(closed, "heldout")}
    for (problem, _), seed in seeds.items():
        assert seeds[problem, "baseline"] == seed
    assert not {r.seed for r in records(closed, "dev")} & set(seeds.values())


def test_held_out_is_consumed_once(closed, copy, cask):
    root = copy(closed)
    before = (root / "prereg" / "ledger.jsonl").read_bytes()
    with pytest.raises(ConsumedError):
        cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root))
    with pytest.raises(ConsumedError):
        cask("-C", root, "tune", "small")
    assert (root / "prereg" / "ledger.jsonl").read_bytes() == before


def test_confirm_needs_tuning_and_the_digest(registered, tuned, copy, cask):
    with pytest.raises(StateError, match="registered, not tuned"):
        cask("-C", registered, "confirm", "--split", "heldout", "--yes", digits(registered))
    root = copy(tuned)
    for wrong in ("deadbeef", digits(root)[:5]):
        with pytest.raises(Exception, match="does not begin the protocol digest"):
            cask("-C", root, "confirm", "--split", "heldout", "--yes", wrong)
    with pytest.raises(Exception, match="no terminal"):
        cask("-C", root, "confirm", "--split", "heldout")
    assert state(root).consume is None


def test_a_study_is_registered_once(registered, copy, cask):
    root = copy(registered)
    with pytest.raises(StateError, match="registered already"):
        cask("register", root / "prereg" / "small.yaml", "--device", "cpu")


@pytest.mark.parametrize(
    "change, field",
    [
        ({"budgets: [64]": "budgets: [72]"}, "budgets"),
        ({'# Temperature "0" is': '# Temperature  "0" is'}, "protocol_raw"),
    ],
)
def test_an_edited_protocol_stops_the_run(tuned, copy, cask, change, field):
    root = copy(tuned)
    replace(root, "small", change)
    with pytest.raises(DriftError, match=f"  {field} was .*, is (.|\n)*cask-eval amend .*small.yaml --reason"):
        cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    assert state(root).consume is None


def test_status_says_that_the_next_command_will_refuse_an_edited_protocol(registered, tuned, copy, cask):
    assert "but first" not in cask("-C", tuned, "status").output
    root = copy(registered)
    path = root / "prereg" / "small.yaml"
    path.write_text(path.read_text() + "# a remark\n")
    said = cask("-C", root, "status").output
    assert "prereg/small.yaml is not what was registered; restore it" in said and "amend" in said
    path.unlink()
    assert "prereg/small.yaml is gone" in cask("-C", root, "status").output


@pytest.mark.parametrize("damage", ["gone", "torn", "other"])
def test_dev_records_that_are_not_those_committed_to_foretell_nothing_and_stop_nothing(tuned, copy, damage):
    assert "small/dev.jsonl" not in " ".join(rehearse(Workspace(tuned), "small").warnings)
    root = copy(tuned)
    path = root / "reports" / "small" / "dev.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[:-1]) + (b'{"torn' if damage == "torn" else b""))
    found = rehearse(Workspace(root), "small")
    (said,) = found.warnings
    assert found.arms == {} and "small/dev.jsonl or its split is not what the ledger commits to" in said


def test_lint_says_that_a_name_is_taken(registered, fresh, copy, cask):
    assert "registered already" not in cask("lint", fresh / "prereg" / "small.yaml").output
    assert "registered already, as it stands here" in cask("lint", registered / "prereg" / "small.yaml").output
    root = copy(registered)
    replace(root, "small", {"budgets: [64]": "budgets: [72]"})
    said = cask("lint", root / "prereg" / "small.yaml").output
    assert "'small' is registered already, with another protocol; give it another name" in said


def test_other_kernels_than_registered_stop_the_run(registered, copy, cask, monkeypatch):
    from cask_eval.engine import kernels
    from cask_eval.errors import KernelError

    root = copy(registered)
    monkeypatch.setenv(kernels.VARIABLE, "flash")
    with pytest.raises(KernelError, match="no kernel 'flash'"):
        cask("-C", root, "tune", "--device", "cpu")
    monkeypatch.setattr(kernels, "chosen", lambda: ("top_k",))
    with pytest.raises(DriftError, match='locked.environment.kernels was none, is "top_k"'):
        cask("-C", root, "tune", "--device", "cpu")


def test_a_swapped_split_stops_the_run(tuned, copy, cask):
    root = copy(tuned)
    path = root / "splits" / "chain-heldout.json"
    path.unlink()
    cask("split", "freeze", path, "--task", "chain", "--role", "heldout", "--param", "seed=99", "--param", "count=10")
    with pytest.raises(DriftError, match="splits.heldout"):
        cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")


def test_changed_methods_stop_the_run(tuned, copy, cask, monkeypatch):
    from cask_eval.runner import fingerprint

    root = copy(tuned)
    monkeypatch.setattr(fingerprint, "digest_tree", lambda *a: "sha256:" + "5" * 64)
    with pytest.raises(DriftError, match="methods"):
        cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"budgets: [64]": "budgets: [24]"}, MethodError, "budget 24 .* protected"),
        ({", calibration: bundled": ""}, MethodError, r"models\[chain-s\].calibration is missing"),
        ({"embedded:chain-s": "embedded:chain-x"}, ModelError, "chain-x"),
        ({"embedded:chain-s": "org/model"}, ModelError, "revision is missing"),
        ({"preset: alpha": "preset: alhpa"}, ProtocolError, "did you mean alpha"),
        ({"max_new_tokens: 300": "max_new_tokens: 9000"}, ModelError, "exceed the 2048 positions"),
        ({"tune: {lambda:": "tune: {lamda:"}, ProtocolError, "unknown parameter 'lamda'"),
        ({"splits/chain-dev.json": "splits/nowhere.json"}, SplitError, "does not exist"),
        ({"splits/chain-dev.json": "splits/chain-heldout.json"}, SplitError, "not the dev split"),
        ({"otherwise: true": 'when: {positive_cells: ">=2"}'}, ProtocolError, "branches"),
        ({'alpha: "0.05"': "alpha: 0.05"}, ProtocolError, "small.yaml:"),
    ],
)
def test_registration_refuses_what_could_not_be_run(fresh, copy, cask, changes, error, message):
    root = copy(fresh)
    replace(root, "small", changes)
    with pytest.raises(error, match=message):
        cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    assert not (root / "prereg" / "ledger.jsonl").exists()


def test_a_matched_budget_that_cannot_hold_the_prompt_stops_before_held_out_is_consumed(fresh, copy, cask):
    root = copy(fresh)
    # At this delta random eviction reaches the baseline's mean cache only with a budget smaller than the prompt.
    replace(root, "small", {"preset: random_pp, params: {delta: 16}": "preset: random_pp, params: {delta: 96}"})
    cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    with pytest.raises(MethodError, match="cell chain-s/b64, arm random, matched from budget 64 .* are protected"):
        cask("-C", root, "tune", "--device", "cpu")
    assert state(root).name == "registered" and state(root).dev_run is None


def test_a_baseline_that_always_fails_on_dev_is_a_clear_error(registered, copy, cask, monkeypatch):
    from cask_eval.engine.method import Policy

    def compress(self, entries, target):
        raise FloatingPointError("poisoned")

    monkeypatch.setattr(Policy, "compress", compress)
    with pytest.raises(StateError, match="every dev trial of the baseline failed.* FloatingPointError: poisoned"):
        cask("-C", copy(registered), "tune", "--device", "cpu")


def test_a_second_study_on_a_spent_split_is_warned_and_the_warning_is_locked(closed, copy, cask):
    root = copy(closed)
    (root / "prereg" / "again.yaml").write_text(
        (root / "prereg" / "small.yaml").read_text().replace("study: small", "study: again")
    )
    result = cask("register", root / "prereg" / "again.yaml", "--device", "cpu")
    assert "'small' consumed the same problems before" in result.stderr
    events = Ledger(root / "prereg" / "ledger.jsonl").events()
    assert any("'small' consumed" in w for w in StudyState.of(events, "again").register[1].warnings)


def test_status_names_the_next_command(fresh, registered, tuned, closed, cask):
    assert "no study" in cask("-C", fresh, "status").output
    for root, follows in (
        (registered, "tune small"),
        (tuned, "confirm small --split heldout"),
        (closed, "verify small"),
    ):
        (row,) = json.loads(cask("-C", root, "status", "--json").output)
        assert row["next"] == f"cask-eval {follows}"


def test_analysis_again_is_the_same_and_changed_records_are_refused(closed, copy, cask):
    root = copy(closed)
    path = root / "reports" / "small" / "analysis.json"
    before = path.read_bytes()
    path.unlink()
    cask("-C", root, "analyze")
    assert path.read_bytes() == before
    lines = (root / "reports" / "small" / "heldout.jsonl").read_text().splitlines(keepends=True)
    (root / "reports" / "small" / "heldout.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(DriftError, match="differs from what was closed"):
        cask("-C", root, "analyze")


def test_a_misspelt_gate_is_refused_before_the_split_is_spent(tuned, copy, cask):
    root = copy(tuned)
    with pytest.raises(CaskError, match="no such branch; it has A, V, C"):
        cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu", "--gate", "Z")
    assert state(root).consume is None


def test_gate_tells_a_null_result_from_a_met_branch(tuned, copy, cask):
    root = copy(tuned)
    result = cask(
        "-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu", "--gate", "A", "--json"
    )
    # --json output is one document on stdout; progress goes to stderr
    branch = json.loads(result.stdout)["branch"]
    assert result.return_value == (0 if branch == "A" else 10)
    assert cask("-C", root, "analyze", "--gate", branch).return_value == 0
    with pytest.raises(CaskError, match="no such branch; it has A, V, C"):
        cask("-C", root, "analyze", "--gate", "Z")


def test_a_trial_that_breaks_is_recorded_as_failed_and_the_rest_go_on(tuned, copy, cask, monkeypatch):
    from cask_eval.engine.method import Policy

    root, inner = copy(tuned), Policy.compress
    poisoned = []

    def compress(self, entries, target):
        from cask_methods.scorers.random import RandomScorer

        if isinstance(self.scorer, RandomScorer):
            first = poisoned or poisoned.append(int(entries.seeds.min())) or poisoned
            if bool((entries.seeds == first[0]).any()):
                raise FloatingPointError("poisoned")
        return inner(self, entries, target)

    monkeypatch.setattr(Policy, "compress", compress)
    cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    failed = [r for r in records(root, "heldout") if r.status == "failed"]
    assert [(r.arm, r.failure.kind, r.failure.message, r.grade.correct) for r in failed] == [
        ("random", "method", "poisoned", False)
    ]
    assert len(records(root, "heldout")) == 30
    assert cask("-C", root, "verify", "--require", "L0").return_value == 0


def test_a_candidate_that_always_fails_is_not_confirmed(registered, copy, cask, monkeypatch):
    from cask_methods.selectors.diverse import Diverse

    def broken(self, scores, candidates, quota, entries):
        raise TypeError("no such thing")

    root = copy(registered)
    monkeypatch.setattr(Diverse, "select", broken)
    with pytest.raises(StateError, match="every dev trial of the candidate .* TypeError: no such thing"):
        cask("-C", root, "tune", "--device", "cpu")
    assert state(root).select is None


def test_a_crash_before_the_analysis_costs_nothing(closed, copy, cask):
    root = copy(closed)
    ledger = root / "prereg" / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
    (row,) = json.loads(cask("-C", root, "status", "--json").output)
    assert row["next"] == "cask-eval analyze small"
    with pytest.raises(CaskError, match="no such branch"):
        cask("-C", root, "confirm", "small", "--split", "heldout", "--gate", "Z")
    cask("-C", root, "confirm", "small", "--split", "heldout")
    assert state(root).analysis is not None
    assert cask("-C", root, "verify", "--require", "L0").return_value == 0


@pytest.mark.slow
def test_a_killed_run_resumes_inside_its_attempt(tuned, copy, cask, closed):
    root = copy(tuned)
    args = [
        sys.executable,
        "-m",
        "cask_eval",
        "-C",
        str(root),
        "confirm",
        "--split",
        "heldout",
        "--yes",
        digits(root),
        "--device",
        "cpu",
        "--slots",
        "2",
    ]
    path = root / "reports" / "small" / "heldout.jsonl"
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(args, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        seen = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.stat().st_size > seen:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills == 2
    assert subprocess.run(args, capture_output=True).returncode == 0
    events = state(root)
    assert [s[1].complete for s in events.sessions] == [False, False, True]
    whole = {r.key: r.output_ids for r in records(closed, "heldout")}
    assert {r.key: r.output_ids for r in records(root, "heldout")} == whole
    assert cask("-C", root, "verify", "--require", "L0").return_value == 0
