import json
import shutil

import pytest
from replaying import good


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A finished folder and its table; tests copy it before they change anything."""
    out = tmp_path_factory.mktemp("replay") / "out"
    rows = json.loads(good("--json", out=out).stdout)
    return out, rows


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "out")
    return tmp_path / "out"
