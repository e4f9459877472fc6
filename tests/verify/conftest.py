from __future__ import annotations

import shutil
from pathlib import Path

import authority
import pytest
from simulator import ASKED, FIDELITY, PROTOCOL, SEVERAL, build, stamped_by


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


@pytest.fixture(scope="session")
def honest_fidelity(tmp_path_factory) -> Path:
    """A finished study of how closely caches follow the full cache's output; copy before you touch it."""
    root = tmp_path_factory.mktemp("fidelity") / "workspace"
    build(root, FIDELITY)
    return root


@pytest.fixture
def fidelity(honest_fidelity, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest_fidelity, tmp_path / "workspace"))


@pytest.fixture
def several(honest_several, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest_several, tmp_path / "workspace"))


@pytest.fixture
def root(honest, tmp_path) -> Path:
    """A copy of the finished study."""
    return Path(shutil.copytree(honest, tmp_path / "workspace"))


@pytest.fixture(scope="session")
def honest_asked(tmp_path_factory) -> Path:
    """A finished study with a prompt file; copy before you touch it."""
    root = tmp_path_factory.mktemp("asked") / "workspace"
    build(root, ASKED)
    return root


@pytest.fixture
def asked(honest_asked, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest_asked, tmp_path / "workspace"))


@pytest.fixture(scope="session")
def trusted() -> authority.Identity:
    """The root of a time-stamp authority that the reviewer trusts."""
    return authority.root("Trusted")


@pytest.fixture(scope="session")
def signer(trusted) -> authority.Identity:
    return trusted.signer("Clock")


@pytest.fixture(scope="session")
def roots(trusted) -> tuple:
    return (trusted.certificate,)


@pytest.fixture(scope="session")
def honest_anchored(tmp_path_factory, signer) -> Path:
    """A finished study whose registration, start and end an authority has stamped; its seeds need the first stamp."""
    root = tmp_path_factory.mktemp("anchored") / "workspace"
    build(root, PROTOCOL + "anchor: registration\n", stamp=stamped_by(signer))
    return root


@pytest.fixture
def anchored(honest_anchored, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest_anchored, tmp_path / "workspace"))


@pytest.fixture(scope="session")
def honest_retuned(tmp_path_factory) -> Path:
    """A finished study, amended after its dev run and confirmatory all the same; copy before you touch it."""
    root = tmp_path_factory.mktemp("retuned") / "workspace"
    build(root, early=PROTOCOL.replace('"0.5", "1.0"', '"1.0"'))
    return root


@pytest.fixture
def retuned(honest_retuned, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest_retuned, tmp_path / "workspace"))


@pytest.fixture(scope="session")
def honest_amended(tmp_path_factory) -> Path:
    """A finished study, amended after its dev run and again after its analysis; copy before you touch it."""
    root = tmp_path_factory.mktemp("amended") / "workspace"
    build(root, early=PROTOCOL.replace('"0.5", "1.0"', '"1.0"'), late=PROTOCOL.replace('"0.5", "1.0"', '"1.0"').replace(
        'veto: {alpha: "0.05"}', 'veto: {alpha: "0.1"}'))  # fmt: skip
    return root


@pytest.fixture
def amended(honest_amended, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(honest_amended, tmp_path / "workspace"))
