"""A small real study on the embedded model, run once per session up to each state and copied from there."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from study_files import digits, replace

from cask_eval.cli import cli


@pytest.fixture(scope="session")
def cask():
    """cask(*args, ok=True) → result of the command line, in this process."""
    from cask_eval.errors import CaskError

    def call(*args, ok=True):
        result = CliRunner().invoke(cli, [str(a) for a in args], standalone_mode=False)
        if result.exception and ok:
            raise result.exception
        result.error = result.exception if isinstance(result.exception, CaskError) else None
        return result

    return call


@pytest.fixture
def tasks(monkeypatch):
    """The tasks of pyproject.toml, whatever an installation from before says."""
    import tomllib
    from importlib.metadata import EntryPoint, EntryPoints

    from cask_eval.tasks import registry

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    named = tomllib.loads(text)["project"]["entry-points"][registry.GROUP]
    found = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in named.items())
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory, cask):
    """A workspace with a protocol of one cell and tiny splits, nothing registered."""
    root = tmp_path_factory.mktemp("fresh") / "ws"
    cask("init", root, "--study", "small")
    for role, seed, count in (("dev", 11, 6), ("heldout", 12, 10)):
        (root / "splits" / f"chain-{role}.json").unlink()
        cask(
            "split",
            "freeze",
            root / "splits" / f"chain-{role}.json",
            "--task",
            "chain",
            "--role",
            role,
            "--param",
            f"seed={seed}",
            "--param",
            f"count={count}",
        )
    replace(
        root,
        "small",
        {
            '  - {id: "embedded:chain-m", name: chain-m, dtype: float32, calibration: bundled}\n': "",
            "  - {name: full, preset: fullkv}\n": "",
            "budgets: [64, 96]": "budgets: [64]",
            '["0.1", "0.25", "0.5", "1.0"]': '["0.25", "1.0"]',
            '  - {name: B, when: {positive_cells: ">=1", negative_cells: ">=1"}, decision: report as regime-dependent}\n': "",
        },
    )
    return root


@pytest.fixture(scope="session")
def registered(fresh, tmp_path_factory, cask):
    root = _copy(fresh, tmp_path_factory)
    cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    return root


@pytest.fixture(scope="session")
def tuned(registered, tmp_path_factory, cask):
    root = _copy(registered, tmp_path_factory)
    cask("-C", root, "tune", "--device", "cpu")
    return root


@pytest.fixture(scope="session")
def closed(tuned, tmp_path_factory, cask):
    root = _copy(tuned, tmp_path_factory)
    cask("-C", root, "confirm", "--split", "heldout", "--yes", digits(root), "--device", "cpu")
    return root


@pytest.fixture
def copy(tmp_path):
    return lambda root: shutil.copytree(root, tmp_path / "ws")


def _copy(root, factory):
    return shutil.copytree(root, factory.mktemp("study") / "ws")
