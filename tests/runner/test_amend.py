"""Amending a real study before and after its held-out run, an exploratory run, and running trials again."""

import json

import pytest
from study_files import digits, replace

from cask_eval.errors import CaskError, ConsumedError, SplitError, StateError
from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.verify.run import verify

WHY = "The grid was longer than the pilot could tell apart."
HARM = {'veto: {alpha: "0.05"}': 'veto: {alpha: "0.1"}'}


def amend(cask, root, *args, **kwargs):
    return cask("amend", root / "prereg" / "small.yaml", "--reason", WHY, "--device", "cpu", *args, **kwargs)


def state_of(root):
    return StudyState.of(Ledger(root / "prereg" / "ledger.jsonl").events(), "small")


def test_a_tuned_study_is_tuned_again_and_keeps_what_it_had(tuned, copy, cask):
    root = copy(tuned)
    before = (root / "reports/small/dev.jsonl").read_bytes()
    replace(root, "small", {'["0.25", "1.0"]': '["1.0"]'})
    said = amend(cask, root).output
    assert 'candidates: [{"name":"candidate"' in said and "run again" in said and "tune small" in said
    state = state_of(root)
    assert state.name == "registered" and state.label == "confirmatory" and len(state.superseded) == 1
    cask("-C", root, "tune", "--device", "cpu")
    assert (root / "reports/small/dev.jsonl").read_bytes() == before
    again = [json.loads(line) for line in (root / "reports/small/dev-2.jsonl").read_bytes().splitlines()]
    assert {r["registration"] for r in again} == {state.register[0].hash}
    cask("-C", root, "confirm", "--split", "heldout", "--yes", state.register[1].protocol_digest, "--device", "cpu")
    verdict = verify(root, "small", require="L0")
    assert verdict.exit_code == 0, verdict.lines
    assert json.loads((root / "reports/small/analysis.json").read_text())["label"] == "confirmatory"


def test_an_amendment_after_the_run_makes_the_study_exploratory(closed, copy, cask):
    root = copy(closed)
    replace(root, "small", HARM)
    assert "exploratory from now on" in amend(cask, root).output
    document = json.loads((root / "reports/small/analysis.json").read_text())
    assert document["label"] == "exploratory"
    assert "exploratory" in (root / "reports/small/report.md").read_text()
    verdict = verify(root, "small", require="L0")
    assert verdict.exit_code == 0, verdict.lines


def test_arms_that_were_run_do_not_hinder_an_amendment(closed, copy, cask, monkeypatch):
    """What `register` would refuse of them by now may have been registered before."""
    from cask_eval.cli import arms
    from cask_eval.decide.lint import Finding

    monkeypatch.setattr(arms, "faults", lambda protocol: [Finding("error", "candidate", "is void beforehand")])
    root = copy(closed)
    replace(root, "small", HARM)
    assert "warning: candidate: is void beforehand" in amend(cask, root).stderr
    assert state_of(root).amendments


def test_what_trials_depend_on_cannot_be_amended_any_more(closed, copy, cask):
    root = copy(closed)
    replace(root, "small", {"budgets: [64]": "budgets: [96]", **HARM})
    with pytest.raises(StateError, match="is consumed, so budgets cannot change"):
        amend(cask, root)
    assert not state_of(root).amendments


def test_an_amendment_needs_a_change_and_a_reason(registered, copy, cask):
    root = copy(registered)
    with pytest.raises(StateError, match="says what is registered already"):
        amend(cask, root)
    replace(root, "small", HARM)
    with pytest.raises(CaskError, match="--reason 'typo': 4 characters"):
        cask("amend", root / "prereg" / "small.yaml", "--reason", "typo", "--device", "cpu")
    replace(root, "small", {"study: small": "study: another"})
    with pytest.raises(StateError, match="'another' is not registered"):
        amend(cask, root)


def test_a_branch_that_cannot_be_is_no_amendment(registered, copy, cask):
    root = copy(registered)
    replace(root, "small", {'when: {positive_cells: ">=1"': 'when: {positive_cells: ">=7"'})
    with pytest.raises(CaskError, match="branches"):
        amend(cask, root)


def second(root, cask):
    """Another study of the same problems, tuned."""
    text = (root / "prereg" / "small.yaml").read_text()
    (root / "prereg" / "second.yaml").write_text(text.replace("study: small", "study: second"))
    cask("register", root / "prereg" / "second.yaml", "--device", "cpu")
    cask("-C", root, "tune", "second", "--device", "cpu")
    return StudyState.of(Ledger(root / "prereg" / "ledger.jsonl").events(), "second").register[1].protocol_digest


def test_spent_problems_confirm_nothing(closed, copy, cask):
    root = copy(closed)
    digest = second(root, cask)
    run = ("-C", root, "confirm", "second", "--split", "heldout", "--yes", digest, "--device", "cpu")
    with pytest.raises(ConsumedError, match="'small' consumed the same problems before"):
        cask(*run)
    cask(*run, "--exploratory")
    document = json.loads((root / "reports/second/analysis.json").read_text())
    assert document["label"] == "exploratory"
    verdict = verify(root, "second", require="L0")
    assert verdict.exit_code == 0, verdict.lines


def test_a_confirmatory_run_does_not_turn_exploratory(tuned, copy, cask, monkeypatch):
    from cask_eval.runner import trials

    root = copy(tuned)
    monkeypatch.setattr(trials.Bench, "run", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    run = ("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    cask(*run, ok=False)
    assert state_of(root).consume
    assert "began as confirmatory" in str(cask(*run, "--exploratory", ok=False).error)


def test_nothing_runs_before_a_stamp_that_the_protocol_asks_for(fresh, copy, cask):
    root = copy(fresh)
    (root / "prereg" / "small.yaml").open("a").write("\nanchor: registration\n")
    cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    with pytest.raises(StateError, match="cask-eval anchor small --tsa URL"):
        cask("-C", root, "tune", "--device", "cpu")
    assert not (root / "reports/small/dev.jsonl").exists()


def test_trials_come_out_the_same_when_they_are_run_again(closed, cask):
    result = cask("-C", closed, "verify", "small", "--require", "L3", "--reexecute", "100", "--device", "cpu")
    assert "RUN  ok" in result.output and "30 of 30 trials drawn from 30" in result.output
    assert "evidence L3" in result.output


def test_an_output_that_no_model_gave_is_found(closed, copy, cask):
    """Two wrong answers exchanged: every digest fits, and only the model can tell."""
    from cask_eval.runner.reexecute import reexecute
    from cask_eval.verify.evidence import Evidence
    from cask_eval.workspace import Workspace

    space = Workspace(closed)
    e = Evidence.load(space, "small")
    records = list(e.heldout.records)
    records[3] = records[3].model_copy(update={"output_ids": records[3].output_ids[::-1]})
    done = reexecute(space, e.state, records, e.events[-1].hash, 100, "cpu")
    r = records[3]
    assert done.differ == (f"{r.cell}/{r.arm}/{r.problem}/{r.sample} came out otherwise",) and done.done == 30


def test_records_from_before_a_field_was_added_come_out_the_same(closed):
    from cask_eval.runner.reexecute import reexecute
    from cask_eval.verify.evidence import Evidence
    from cask_eval.workspace import Workspace

    space = Workspace(closed)
    e = Evidence.load(space, "small")
    assert all(r.stages is not None and r.regime == "active" for r in e.heldout.records if r.residency.events)
    records = [r.model_copy(update={"stages": None}) for r in e.heldout.records]
    assert reexecute(space, e.state, records, "x", 6, "cpu").differ == ()
    wrong = [r.model_copy(update={"stages": r.stages.model_copy(update={"exhausted": 9})}) for r in e.heldout.records]
    assert len(reexecute(space, e.state, wrong, "x", 6, "cpu").differ) == 6


def test_the_reviewer_s_draw_decides_and_failures_are_drawn_too(closed):
    from cask_eval.runner.reexecute import drawn
    from cask_eval.verify.evidence import Evidence
    from cask_eval.workspace import Workspace

    records = list(Evidence.load(Workspace(closed), "small").heldout.records)
    records[0] = records[0].model_copy(update={"status": "failed"})
    one, other = ([r.key for r in drawn(records, text, 5)] for text in ("one", "other"))
    assert one != other and one == [r.key for r in drawn(records, "one", 5)]
    assert records[0] in drawn(records, "one", len(records))


def test_another_model_than_the_locked_one_is_told(closed):
    """Weights whose digest the registration does not hold come out the same, and count for nothing."""
    from dataclasses import replace as change

    from cask_eval.runner.reexecute import reexecute
    from cask_eval.verify.evidence import Evidence
    from cask_eval.workspace import Workspace

    space = Workspace(closed)
    e = Evidence.load(space, "small")
    event, register = e.state.register
    model = register.models[0].model_copy(update={"digest": "sha256:" + "0" * 64})
    state = change(e.state, register=(event, register.model_copy(update={"models": [model]})))
    done = reexecute(space, state, e.heldout.records, "x", 3, "cpu")
    assert done.differ == () and done.machine == () and done.subject == ("models",)


def cut_off(root, cask, monkeypatch):
    """A dev run that stops when the baseline has run."""
    from cask_eval.runner import trials

    run = trials.Bench.run
    with monkeypatch.context() as patch:
        patch.setattr(
            trials.Bench, "run", lambda self, batch, *rest: run(self, batch, *rest) if batch.arm == "baseline" else 1 / 0
        )
        cask("-C", root, "tune", "--device", "cpu", ok=False)


def test_a_dev_run_that_was_cut_off_is_committed_to(registered, copy, cask, monkeypatch):
    root = copy(registered)
    cut_off(root, cask, monkeypatch)
    replace(root, "small", {'["0.25", "1.0"]': '["1.0"]'})
    amend(cask, root)
    era = state_of(root).superseded[0]
    assert era.dev_run is None and era.records.path == "reports/small/dev.jsonl" and era.records.count > 0
    cask("-C", root, "tune", "--device", "cpu")
    digest = state_of(root).register[1].protocol_digest
    cask("-C", root, "confirm", "--split", "heldout", "--yes", digest, "--device", "cpu")
    assert verify(root, "small", require="L0").exit_code == 0
    cask("-C", root, "export", "-o", root / "b.zip")
    assert cask("verify", root / "b.zip", "--require", "L0").return_value == 0
    (root / "reports/small/dev.jsonl").unlink()
    assert [r.id for r in verify(root, "small", require="L0").failed] == ["V04"]
    with pytest.raises(StateError, match="dev.jsonl is not there"):
        cask("-C", root, "export", "-o", root / "c.zip")


def test_dev_problems_are_not_amended_into_the_held_out_split(registered, copy, cask):
    root = copy(registered)
    for role, other in (("dev", "heldout"), ("heldout", "dev")):
        path = state_of(root).register[1].splits[role].path
        was = json.loads((root / path).read_text())
        (root / f"splits/was-{role}.json").write_text(json.dumps({**was, "name": f"was-{role}", "role": other}))
        replace(root, "small", {path: f"splits/was-x-{other}.json"})
    replace(root, "small", {"was-x-": "was-"})
    with pytest.raises(SplitError, match="were dev problems of this study"):
        amend(cask, root)
    assert not state_of(root).amendments


def test_a_dev_split_frozen_again_at_its_path_is_refused(registered, copy, cask):
    """Where the old one is gone, nobody could tell which problems had been looked at."""
    root = copy(registered)
    path = root / state_of(root).register[1].splits["dev"].path
    path.unlink()
    cask("split", "freeze", path, "--task", "chain", "--role", "dev", "--param", "seed=901", "--param", "count=5")
    with pytest.raises(SplitError, match="(?s)was the dev split until now.*under another name"):
        amend(cask, root)


def test_code_that_changed_can_be_amended_honestly(registered, copy, cask, monkeypatch):
    """Another library version and the same protocol: `tune` refuses and names `amend`, which says what it changes."""
    from cask_eval.errors import DriftError
    from cask_eval.runner import fingerprint

    root = copy(registered)
    before = fingerprint.environment("cpu")
    now = before.model_copy(update={"packages": {**before.packages, "torch": "99.0"}})
    monkeypatch.setattr(fingerprint, "environment", lambda device: now)
    with pytest.raises(DriftError, match="locked.environment.packages.torch was .* is \"99.0\"(.|\n)*cask-eval amend"):
        cask("-C", root, "tune", "--device", "cpu")
    assert "locked.environment.packages.torch" in amend(cask, root).output
    cask("-C", root, "tune", "--device", "cpu")
