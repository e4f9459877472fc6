"""A tiny real study on the embedded model, and commands on it in processes of their own that can be broken."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from crashes import STUDY, Workplace
from faults import Faults

HERE = Path(__file__).parent
# Cannot be reached with one cell.
BRANCH = """\
  - {name: B, when: {positive_cells: ">=1", negative_cells: ">=1"}, decision: report as regime-dependent}
"""


@dataclass
class Done:
    """How a command ended: exit code, or the signal's number below zero. `points` is where faults could have been,
    unknown when it was killed; `finished` are the keys of the trials that it ran."""

    status: int | None
    folder: Path

    @property
    def out(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def points(self) -> list[str]:
        return (self.folder / "points").read_text().splitlines()

    @property
    def finished(self) -> list[str]:
        return (self.folder / "finished").read_text().splitlines()


class Running:
    def __init__(self, server: "Server", pid: int, folder: Path):
        self.server, self.pid, self.folder = server, pid, folder

    def wait(self, seconds: float = 120) -> Done:
        status = self.server.ask(wait=self.pid, seconds=seconds)["status"]
        assert status is not None, f"{self.pid} still runs after {seconds} s"
        return Done(status, self.folder)

    def until(self, trials: int, seconds: float = 60) -> None:
        """Wait until so many trials have finished, or seconds have passed."""
        path, end = self.folder / "finished", time.monotonic() + seconds
        while time.monotonic() < end and (not path.exists() or path.read_bytes().count(b"\n") < trials):
            if not Path(f"/proc/{self.pid}/cmdline").read_bytes():  # it has ended
                return
            time.sleep(0.002)

    def kill(self, signal: int) -> None:
        os.kill(self.pid, signal)


class Server:
    """Starts command lines: server(*args, faults=…) runs one to its end, server.start returns at once."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert json.loads(self.process.stdout.readline()) == {"ready": True}

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *args, faults: Faults | None = None, gate: Path | None = None) -> Running:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        given = asdict(faults) if faults else None
        words = [str(a) for a in args]
        answer = self.ask(args=words, folder=str(folder), faults=given, gate=str(gate) if gate else None)
        return Running(self, answer["pid"], folder)

    def __call__(self, *args, faults: Faults | None = None) -> Done:
        return self.start(*args, faults=faults).wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("runs"))
    yield made
    made.process.stdin.close()
    made.process.wait(60)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory, server) -> Workplace:
    """A protocol of one cell and four arms' configurations, three dev problems and five held-out ones."""
    root = tmp_path_factory.mktemp("fresh") / "ws"
    assert server("init", root, "--study", STUDY).status == 0
    for role, seed, count in (("dev", 11, 3), ("heldout", 12, 5)):
        path = root / "splits" / f"chain-{role}.json"
        path.unlink()
        source = ("--param", f"seed={seed}", "--param", f"count={count}")
        assert server("split", "freeze", path, "--task", "chain", "--role", role, *source).status == 0
    place = Workplace(root)
    place.edit(
        {
            # One cell; every arm's outputs are drawn, so that they show their seeds.
            BRANCH: "",
            '  - {id: "embedded:chain-m", name: chain-m, dtype: float32, calibration: bundled}\n': "",
            "  - {name: full, preset: fullkv}\n": "",
            "budgets: [64, 96]": "budgets: [64]",
            '["0.1", "0.25", "0.5", "1.0"]': '["0.25", "1.0"]',
            'temperature: "0", samples: 1, max_new_tokens: 300': 'temperature: "0.6", samples: 1, max_new_tokens: 300',
        }
    )
    return place


@pytest.fixture(scope="session")
def registered(fresh, tmp_path_factory, server) -> Workplace:
    return _after(fresh, tmp_path_factory, server, "register")


@pytest.fixture(scope="session")
def tuned(registered, tmp_path_factory, server) -> Workplace:
    return _after(registered, tmp_path_factory, server, "tune")


@pytest.fixture(scope="session")
def closed(tuned, tmp_path_factory, server) -> Workplace:
    """Nothing interrupted this one: what the others must come to."""
    return _after(tuned, tmp_path_factory, server, "confirm")


@pytest.fixture
def copy(tmp_path):
    """copy(place, name="ws") → a copy to break."""
    return lambda place, name="ws": Workplace(Path(shutil.copytree(place.root, tmp_path / name)))


def _after(before: Workplace, factory, server, command: str) -> Workplace:
    place = Workplace(Path(shutil.copytree(before.root, factory.mktemp(command) / "ws")))
    done = server(*place.command(command))
    assert done.status == 0, done.err
    return place
