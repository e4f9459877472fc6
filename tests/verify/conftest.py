from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from simulator import SEVERAL, build


@pytest.fixture(scope="session")
def honest(tmp_path_factory) -> Path:
    """A finished study; copy before you touch it."""
    root = tmp_path_factory.mktemp("honest") / "workspace"
    build(root)
    return root


@pytest.fixture(scope="session")
def honest_several(tmp_path_factory) -> Path:
    """A finished study of three candidates, two of them confirmed; copy before you touch it."""
    root = tmp_path_factory.mktemp("several") / "workspace"
    build(root, SEVERAL)
    return root


@pytest.fixture
def several(honest_several, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest_several, tmp_path / "workspace"))


@pytest.fixture
def root(honest, tmp_path) -> Path:
    """A copy of the finished study."""
    return Path(shutil.copytree(honest, tmp_path / "workspace"))
