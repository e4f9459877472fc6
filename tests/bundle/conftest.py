from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from simulator import STUDY, build

from cask_eval.bundle.write import export
from cask_eval.cli import cli
from cask_eval.errors import CaskError
from cask_eval.workspace import Workspace


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A finished study; copy before you touch it."""
    root = tmp_path_factory.mktemp("made") / "ws"
    build(root)
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "ws"))


@pytest.fixture(scope="session")
def sent(made, tmp_path_factory) -> bytes:
    """The bytes of its bundle."""
    path = tmp_path_factory.mktemp("sent") / "sim.zip"
    export(Workspace(made), STUDY, path)
    return path.read_bytes()


@pytest.fixture
def cask():
    """Run a command; typed errors are raised."""

    def run(*args: object) -> Result:
        result = CliRunner().invoke(cli, [str(a) for a in args], standalone_mode=False)
        if isinstance(result.exception, CaskError):
            raise result.exception
        return result

    return run
