"""What the driver does before it goes to a cluster."""

import pytest

from cask_eval.cluster.study import Cluster
from cask_eval.errors import CaskError, DriftError, StateError
from cask_eval.runner.study import open_study
from cask_eval.workspace import Workspace


@pytest.fixture
def away(monkeypatch):
    """Nobody may go to a cluster."""
    for name in ("study", "replay"):
        monkeypatch.setattr(f"cask_eval.cluster.{name}.connected", lambda _: pytest.fail("it went to the cluster"))


def test_a_driver_needs_no_gpu_but_the_registered_code(registered):
    study, locked = open_study(Workspace(registered.root), registered.protocol), registered.state.register[1]
    elsewhere = {"device": "NVIDIA H200", "cuda": "13.0", "driver": "13000"}
    there = locked.model_copy(update={"environment": locked.environment.model_copy(update=elsewhere)})
    for one in (locked, there):
        Cluster("auto", "auto", None).check(study, one)
    other = locked.environment.model_copy(update={"packages": {**locked.environment.packages, "torch": "1.0"}})
    for changed, message in (
        (locked.model_copy(update={"environment": other}), "environment.packages.torch"),
        (locked.model_copy(update={"grader": "another"}), "grader"),
        (locked.model_copy(update={"methods": []}), "methods"),
    ):
        with pytest.raises(DriftError, match=message):
            Cluster("auto", "auto", None).check(study, changed)


@pytest.mark.parametrize("command", ["tune", "confirm"])
def test_a_second_driver_starts_no_worker(command, registered, tuned, tmp_path, cask, away):
    place = {"tune": registered, "confirm": tuned}[command].copy(tmp_path)
    line = ["-C", place.root, "tune", "--ray", "auto"] if command == "tune" else place.confirm("--ray", "auto")
    with place.store({"tune": "dev", "confirm": "heldout"}[command]).open():
        result = cask(*line, fails=StateError)
    assert "another process is writing these records" in str(result.exception)
    assert place.state.consume is None


def test_a_second_driver_of_a_folder_starts_no_worker(tuned, tmp_path, cask, away):
    from cask_eval.replay.run import taken

    line = ["-C", tuned.root, "replay", "--model", "embedded:chain-s", "--split", tuned.root / "splits/chain-dev.json"]
    line += ["--arm", "recency:delta=16", "--budgets", "64", "--ray", "auto", "-o", tmp_path / "out"]
    with taken(tmp_path / "out"):
        result = cask(*line, fails=StateError)
    assert "another process replays into this folder" in str(result.exception)


def test_ray_says_which_gpu_a_worker_has(tuned, tmp_path, cask, away):
    place = tuned.copy(tmp_path)
    result = cask(*place.confirm("--ray", "auto", "--device", "cuda:1"), fails=CaskError)
    assert "--device cuda:1: Ray says which GPU a worker has" in str(result.exception)
