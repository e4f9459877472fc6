"""A tiny real study, and a real Ray cluster of several nodes on this machine."""

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from clusters import ONE_CELL, Place

from cask_eval.cli import cli
from cask_eval.errors import CaskError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cask():
    """cask(*args, fails=None) → result of the command line, in this process; `fails` is the error it must end with."""

    def call(*args, fails: type[CaskError] | None = None):
        result = CliRunner().invoke(cli, [str(a) for a in args], standalone_mode=False)
        if fails is None and result.exception:
            raise result.exception
        if fails is not None:
            assert isinstance(result.exception, fails), result.exception
        return result

    return call


@pytest.fixture(scope="session")
def fresh(tmp_path_factory, cask) -> Place:
    place = Place(tmp_path_factory.mktemp("fresh") / "ws")
    cask("init", place.root, "--study", place.study)
    for role, seed, count in (("dev", 11, 4), ("heldout", 12, 8)):
        path = place.root / "splits" / f"chain-{role}.json"
        path.unlink()
        source = ("--param", f"seed={seed}", "--param", f"count={count}")
        cask("split", "freeze", path, "--task", "chain", "--role", role, *source)
    place.edit(ONE_CELL)
    return place


@pytest.fixture(scope="session")
def registered(fresh, tmp_path_factory, cask) -> Place:
    place = fresh.copy(tmp_path_factory.mktemp("registered"))
    cask("register", place.protocol, "--device", "cpu")
    return place


@pytest.fixture(scope="session")
def tuned(registered, tmp_path_factory, cask) -> Place:
    place = registered.copy(tmp_path_factory.mktemp("tuned"))
    cask("-C", place.root, "tune", "--device", "cpu")
    return place


@pytest.fixture(scope="session")
def closed(tuned, tmp_path_factory, cask) -> Place:
    """What one process leaves, which a cluster must leave too."""
    place = tuned.copy(tmp_path_factory.mktemp("closed"))
    cask(*place.confirm("--device", "cpu"))
    return place


@pytest.fixture(scope="session")
def cluster():
    """A head without CPUs and two nodes of one CPU, each with processes of its own."""
    pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    few = {"object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **few})
    for _ in range(2):
        made.add_node(num_cpus=1, **few)
    yield made
    made.shutdown()


@pytest.fixture
def address(cluster):
    return cluster.address


@pytest.fixture
def during(monkeypatch):
    """during(act): call `act(crew)` after each result that comes, until it says that it has done something."""
    from cask_eval.cluster.crew import Crew

    inner, todo = Crew.run, []

    def run(self, queue, order, receive):
        def received(block, some):
            receive(block, some)
            if todo and todo[0](self):
                todo.pop(0)

        inner(self, queue, order, received)

    monkeypatch.setattr(Crew, "run", run)
    return todo.append


@pytest.fixture
def other_code(tmp_path):
    """A folder with the toolkit in it, one comment longer."""
    shutil.copytree(ROOT / "cask_eval", tmp_path / "other" / "cask_eval")
    with open(tmp_path / "other" / "cask_eval" / "residency.py", "a", encoding="utf-8") as file:
        file.write("# Another version.\n")
    return tmp_path / "other"
