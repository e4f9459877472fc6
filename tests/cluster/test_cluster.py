"""Studies and replays on a real cluster of several nodes: what they leave is what one process leaves, whatever dies."""

import os
import signal
import subprocess
import sys
import time

import pytest
from clusters import same_heldout

from cask_eval.errors import DriftError, StateError
from cask_eval.records.store import same_evidence

pytestmark = pytest.mark.slow


def kill_a_worker(crew) -> bool:
    """One that is in the middle of a block."""
    busy = [h for h in crew.hands if h.left]
    if busy:
        os.kill(busy[0].ready.pid, signal.SIGKILL)
    return bool(busy)


def test_a_study_leaves_what_it_leaves_in_one_process(registered, tuned, closed, address, tmp_path, cask):
    place = registered.copy(tmp_path)
    cask("-C", place.root, "tune", "--ray", address, "--slots", "2")
    ours, theirs = place.state, tuned.state
    assert ours.dev_run[1].records == theirs.dev_run[1].records
    assert ours.dev_run[1].matched == theirs.dev_run[1].matched
    assert ours.dev_run[1].lost is None
    assert ours.select[1] == theirs.select[1]
    cask(*place.confirm("--ray", address))
    same_heldout(place, closed)
    assert [s.lost for _, s in place.state.sessions] == [None]
    assert cask("-C", place.root, "verify", "--require", "L0").return_value == 0


def test_a_worker_that_is_killed_costs_nothing(tuned, closed, address, tmp_path, cask, during):
    place = tuned.copy(tmp_path)
    during(kill_a_worker)
    said = cask(*place.confirm("--ray", address)).stderr
    assert "has died" in said and "attempt 2" in said
    ((_, session),) = place.state.sessions
    assert session.complete and session.lost.workers == 1 and session.lost.attempts == 2 and session.lost.trials > 0
    same_heldout(place, closed)
    assert cask("-C", place.root, "verify", "--require", "L0").return_value == 0


def test_a_node_that_is_gone_costs_nothing(tuned, closed, cluster, tmp_path, cask, during):
    place = tuned.copy(tmp_path)
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    gone = []

    def remove(crew) -> bool:
        if not gone and len([h for h in crew.hands if h.left]) > 1:
            gone.append(cluster.remove_node(node, allow_graceful=False))
        return bool(gone)

    during(remove)
    cask(*place.confirm("--ray", cluster.address))
    assert gone and place.state.sessions[-1][1].lost.workers >= 1
    same_heldout(place, closed)


def test_a_second_driver_is_refused_and_a_killed_one_goes_on(tuned, closed, address, tmp_path, cask, monkeypatch):
    place = tuned.copy(tmp_path)
    line = place.confirm("--ray", address)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen([sys.executable, "-m", "cask_eval", *line], **quiet)
    path, end = place.store("heldout").path, time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    with monkeypatch.context() as patch:
        # It starts nothing.
        patch.setattr("cask_eval.cluster.study.connected", lambda _: pytest.fail("it went to the cluster"))
        result = cask(*line, fails=StateError)
    assert "another process is writing these records" in str(result.exception)
    driver.kill()
    driver.wait()
    saved = place.store("heldout").path.read_bytes()
    assert place.state.close is None and 2 <= saved.count(b"\n") < 24
    cask(*line)
    assert [s.complete for _, s in place.state.sessions] == [False, True]
    assert place.store("heldout").path.read_bytes().startswith(saved[: saved.rindex(b"\n") + 1])
    same_heldout(place, closed)


def test_a_node_with_other_code_runs_nothing(tuned, cluster, other_code, tmp_path, cask, monkeypatch):
    place = tuned.copy(tmp_path)
    monkeypatch.chdir(tmp_path)  # Ray puts the driver's folder first on every worker's path
    found = os.pathsep.join([str(other_code), *filter(None, [os.environ.get("PYTHONPATH")])])
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20, env_vars={"PYTHONPATH": found})
    try:
        result = cask(*place.confirm("--ray", cluster.address), fails=DriftError)
    finally:
        cluster.remove_node(node)
    assert "locked.environment.toolkit was" in str(result.exception) and "worker " in str(result.exception)
    assert place.state.consume is None and not place.store("heldout").path.exists()


def test_a_study_of_fidelity_with_a_search(fresh, address, tmp_path, cask, during):
    """References first, which all arms replay; a candidate whose budget is searched; numbers per token of several
    configurations in one file; a worker that is killed."""
    place = fresh.copy(tmp_path)
    old = place.protocol.read_text()
    candidate = old[old.index("candidate:\n") : old.index("\n# Controls are run")]
    place.edit(
        {
            candidate: "candidate: {preset: tri_vote, params: {delta: 16}, tune: {prompt: [pinned, compete]}}\n",
            "budgets: [64]": "budgets: [128]",
            "select: max_mean_accuracy": "select: max_mean_endpoint",
            "endpoint: accuracy": "endpoint: nll",
            "procedure: paired_bootstrap": "procedure: sign_flip",
        }
    )
    cask("register", place.protocol, "--device", "cpu")
    whole = place.copy(tmp_path / "whole")
    cask("-C", whole.root, "tune", "--device", "cpu")
    cask(*whole.confirm("--device", "cpu"))
    cask("-C", place.root, "tune", "--ray", address, "--slots", "2")
    during(kill_a_worker)
    cask(*place.confirm("--ray", address))
    assert any(choice.searched for choice in whole.state.dev_run[1].matched["chain-s/b128"]["candidate"].values())
    assert place.state.dev_run[1].matched == whole.state.dev_run[1].matched
    for phase in ("dev", "heldout"):
        ours, theirs = ({r.key: r for r in p.store(phase).read()} for p in (place, whole))
        assert ours.keys() == theirs.keys()
        # Its last digits depend on the batch, as those of a local run do that was interrupted.
        assert all(same_evidence(ours[key], theirs[key]) for key in ours)
    assert place.state.sessions[-1][1].lost.workers == 1
    assert cask("-C", place.root, "verify", "--require", "L0").return_value == 0


def test_replays_leave_what_they_leave_in_one_process(address, tmp_path, cask, during):
    """A worker is killed on the way."""
    from cask_eval.replay.summary import table
    from cask_eval.splits.freeze import freeze
    from cask_eval.splits.store import write
    from cask_eval.tasks import registry

    source = {"seed": 5, "count": 4}
    split, task = tmp_path / "dev.json", registry.load("chain")
    write(split, freeze("few", "chain", "dev", source, "all", task.problems(source)))
    line = ["replay", "--model", "embedded:chain-s", "--budgets", "48,64", "--max-new-tokens", "100", "--split", split]
    line += ["--arm", "recency:delta=16", "--arm", "tri_vote:prompt=outside,delta=8", "--temperature", "0.6"]
    cask("-C", tmp_path, *line, "--device", "cpu", "-o", tmp_path / "here")
    during(kill_a_worker)
    cask("-C", tmp_path, *line, "--ray", address, "-o", tmp_path / "there")
    for name in ("references.jsonl", "records.jsonl"):
        here, there = ((tmp_path / where / name).read_bytes().splitlines() for where in ("here", "there"))
        assert sorted(here) == sorted(there), name
    files = sorted(p.relative_to(tmp_path / "here") for p in (tmp_path / "here" / "tokens").iterdir())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
    assert table(tmp_path / "here") == table(tmp_path / "there")
