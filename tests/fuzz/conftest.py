from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from simulator import build


@pytest.fixture(scope="session")
def honest(tmp_path_factory) -> Path:
    """A finished study; copy before you touch it."""
    root = tmp_path_factory.mktemp("fuzz") / "ws"
    build(root)
    return root


@pytest.fixture
def root(honest, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest, tmp_path / "ws"))
