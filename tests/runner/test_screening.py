"""Several candidates on a real model: all run on the dev split, one of them with a budget that has to be searched; what
survives is confirmed."""

import json
import shutil
from fractions import Fraction

import pytest
from study_files import digits, replace

from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState
from cask_eval.protocol.keys import step_config
from cask_eval.records.store import RecordStore
from cask_eval.runner.place import Here
from cask_eval.runner.steps import Watch, tune
from cask_eval.runner.trials import Bench
from cask_eval.workspace import Workspace

CELL = "chain-s/b128"


def state(root):
    return StudyState.of(Ledger(root / "prereg" / "ledger.jsonl").events(), "small")


def records(root, name):
    return list(RecordStore(root / "reports" / "small" / f"{name}.jsonl").read())


@pytest.fixture(scope="module")
def registered(fresh, tmp_path_factory, cask):
    root = shutil.copytree(fresh, tmp_path_factory.mktemp("screening") / "ws")
    old = (root / "prereg" / "small.yaml").read_text()
    candidate = old[old.index("candidate:\n") : old.index("\n# Controls are run")]
    replace(
        root,
        "small",
        {
            candidate: """\
candidates:
  - {name: vote, preset: tri_vote, params: {delta: 16}}
  - {name: alpha, preset: alpha, params: {delta: 16, mode: per_layer_head, prompt: pinned}}
screening: {survivors: 1, min_gain: "-1"}
""",
            "budgets: [64]": "budgets: [128]",
        },
    )
    cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    return root


@pytest.fixture(scope="module")
def tuned(registered, tmp_path_factory, cask):
    root = shutil.copytree(registered, tmp_path_factory.mktemp("screening") / "ws")
    cask("-C", root, "tune", "--device", "cpu")
    return root


def test_the_budget_of_a_vote_is_searched(tuned):
    choice = state(tuned).dev_run[1].matched[CELL]["vote"]["untuned"]
    assert choice.searched and choice.schedule.budget in [s.budget for s in choice.searched]
    every = [r for r in records(tuned, "dev") if r.arm == "vote"]
    own = [r for r in every if r.config == "untuned"]
    assert len(own) == 6 and all(len(r.chains) == 2 for r in own)
    # What was tried at the last budget is what the configuration has; everything that was tried is there.
    last = [r for r in every if r.config == step_config("untuned", choice.schedule.budget)]
    assert own == [r.model_copy(update={"config": "untuned"}) for r in last]
    assert len(every) == 6 * (1 + len(choice.searched))
    assert state(tuned).dev_run[1].matched[CELL]["alpha"]["untuned"].searched == []


def test_trials_of_a_search_are_not_run_twice(tuned, registered, copy, monkeypatch):
    """An interruption after the last trial and before the event."""
    root = copy(registered)
    shutil.copytree(tuned / "reports" / "small", root / "reports" / "small", dirs_exist_ok=True)
    kept = [r for r in records(tuned, "dev") if r.arm == "baseline" or "@" in r.config]
    store = RecordStore(root / "reports" / "small" / "dev.jsonl")
    store.path.unlink()
    with store.open():
        store.append(kept)
    inner = Bench._trials

    def only_alpha(self, decoder, requests, *rest):
        assert {r.key[2] for r in requests} == {"alpha"}
        return inner(self, decoder, requests, *rest)

    monkeypatch.setattr(Bench, "_trials", only_alpha)
    seen = []
    watch = Watch(start=lambda *at: seen.append(at), advance=lambda trials, _: seen.append(trials))
    tune(Workspace(root), "small", Here("cpu", 8), watch)
    # The bar is about the trials of configurations, and comes to its end.
    assert seen[0] == (18, 6) and sum(seen[1:]) == 12
    assert state(root).dev_run[1] == state(tuned).dev_run[1]
    assert state(root).select[1] == state(tuned).select[1]


def test_only_the_survivor_is_confirmed(tuned, copy, cask):
    root = copy(tuned)
    chosen = state(root).select[1]
    (survivor,) = chosen.survivors
    assert chosen.gains[survivor] == max(chosen.gains.values(), key=Fraction)
    cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    assert {r.arm for r in records(root, "dev")} == {"baseline", "vote", "alpha"}
    assert {r.arm for r in records(root, "heldout")} == {"baseline", survivor, "random"}
    document = json.loads((root / "reports" / "small" / "analysis.json").read_text())
    assert document["family"] == 1
    assert [(s["candidate"], s["survived"]) for s in document["screening"]] == [
        ("vote", survivor == "vote"), ("alpha", survivor == "alpha")]  # fmt: skip
    result = cask("-C", root, "verify", "--require", "L0")
    assert result.return_value == 0, result.output
