import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from cask_eval.tasks import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def points(monkeypatch):
    """The entry points of pyproject.toml, whatever an installation from before says."""
    with open(ROOT / "pyproject.toml", "rb") as f:
        named = tomllib.load(f)["project"]["entry-points"][registry.GROUP]
    found = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in named.items())
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    return sorted(named)
