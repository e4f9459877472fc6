from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from simulator import build

settings.register_profile(
    "fuzz", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], database=None
)


@pytest.fixture(autouse=True)
def _profile():
    before = settings.default
    settings.load_profile("fuzz")
    yield
    settings.register_profile("before", before)
    settings.load_profile("before")


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
