"""What a user is told when Ray or the cluster is not there, and how many workers a cluster has room for."""

import socket
import sys

import pytest
from click.testing import CliRunner

from cask_eval.cli import cli
from cask_eval.cluster.connect import Size, connected, size_of
from cask_eval.errors import CaskError


@pytest.mark.parametrize("command", [["tune"], ["confirm", "--split", "heldout"], ["replay"]])
def test_every_command_that_runs_trials_takes_a_cluster(command):
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert "--ray auto|ADDRESS" in result.output


def test_ray_that_is_not_installed_has_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CaskError, match=r"pip install 'cask-eval\[ray\]'"), connected("auto"):
        pass


@pytest.mark.parametrize("address", ["nonsense", "ray://10.0.0.1:10001", ":6379", "host:port", "host"])
def test_an_address_has_a_host_and_a_port(address):
    pytest.importorskip("ray")
    with pytest.raises(CaskError, match="is no HOST:PORT"), connected(address):
        pass


def test_a_cluster_that_is_not_there_is_an_error_at_once():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(CaskError, match=f"--ray 127.0.0.1:{port}: nothing answers there .*ray start --head"):
        with connected(f"127.0.0.1:{port}"):
            pass


GPU, CPU = {"GPU": 4.0, "CPU": 64.0}, {"CPU": 16.0}


@pytest.mark.parametrize(
    "nodes, device, small, size, places",
    [
        ([GPU, GPU, CPU], "auto", True, Size(1, 0), 8),
        ([GPU, {"GPU": 1.0, "CPU": 0.0}], "cuda", False, Size(1, 0), 5),
        ([GPU, CPU], "cpu", True, Size(0, 1), 80),
        ([CPU, {"CPU": 4.0}, {}], "auto", False, Size(0, 4), 5),
        ([CPU, CPU], "auto", False, Size(0, 8), 4),
    ],
)
def test_a_worker_has_a_gpu_or_a_share_of_the_cpus(nodes, device, small, size, places):
    found = size_of(nodes, device, small)
    assert found == size and found.places(nodes) == places


def test_a_cluster_without_what_is_asked_for_is_refused():
    with pytest.raises(CaskError, match="no GPU"):
        size_of([CPU], "cuda", True)
    with pytest.raises(CaskError, match="no node"):
        size_of([{"memory": 1.0}], "auto", True)
