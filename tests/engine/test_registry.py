"""What the registry says of methods, and which packages a composition is built from."""

import importlib
import json
import sys

import pytest

from cask_eval.engine.registry import available, describe, load, reference_geometry, source_packages
from cask_eval.errors import MethodError

PRESET = """
from dataclasses import dataclass
from cask_eval.engine.method import Method
from cask_eval.schedule import Schedule
from {a}.scorer import Part as Scorer
from {b}.selector import Part as Selector
from {c}.allocation import Part as Allocation
from {d}.cadence import Part as Cadence
from {e}.representation import Part as Representation
from {f}.inner import Part as Inner

@dataclass(frozen=True)
class Made(Method):
    def scorer(self): return Scorer(Inner(None))
    def selector(self): return Selector(None)
    def allocation(self): return Allocation(None)
    def representation(self): return Representation(None)
    def cadence(self): return Cadence(None)
    def schedule(self, budget, encode=None): return Schedule("slack", budget, 4, "pinned")
"""

PART = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Part:
    inner: object
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Seven packages: one with a preset, and one for each of the parts that it is composed of."""
    names = {letter: f"registry_test_{letter}" for letter in "abcdefg"}
    modules = ["scorer", "selector", "allocation", "cadence", "representation", "inner"]
    for (letter, name), module in zip(names.items(), [*modules, "preset"], strict=True):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / f"{module}.py").write_text(PRESET.format(**names) if letter == "g" else PART)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield names, tmp_path
    for module in [m for m in sys.modules if m.startswith("registry_test_")]:
        del sys.modules[module]


def test_every_part_is_locked_with_the_preset(packages):
    names, root = packages
    made = importlib.import_module(f"{names['g']}.preset").Made()
    assert source_packages([made]) == {name: root / name for name in names.values()}


def test_a_single_file_cannot_be_locked(tmp_path, monkeypatch):
    (tmp_path / "registry_test_file.py").write_text(
        "from cask_methods.presets.fullkv import FullKV\n\nclass Made(FullKV):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    made = importlib.import_module("registry_test_file").Made()
    with pytest.raises(MethodError, match="must live in a package"):
        source_packages([made])
    del sys.modules["registry_test_file"]


@pytest.mark.parametrize("name", list(available()))
def test_every_installed_method_is_described(name):
    about = json.loads(json.dumps(describe(name)))
    composition, made = about["composition"], load(name)()
    assert about["name"] == name and about["summary"]
    assert about["calibrated"] is made.calibrated
    if composition["cadence"] != "never":
        assert all(composition.values()), composition
    assert about["state"]["queries"] >= 0 and about["state"]["trait_bytes"] >= 0
    for key, value in about["null"].items():
        assert about["parameters"][key]["null"] == value
        assert type(load(name).make(name, {key: str(value) if isinstance(value, float) else value})) is load(name)
    if about["reference"]:
        assert about["reference"] in available() and about["null"]


def test_state_in_bytes_of_a_7b_model():
    """methods.md §1.2, §4: 8 queries are 28 tokens of a layer; an fp32 number per entry is 0.8 %."""
    snapkv = describe("snapkv")["state"]
    assert (snapkv["queries"], snapkv["query_tokens"], snapkv["query_bytes"]) == (8, 28, 28 * 28 * 8 * 128 * 2)
    assert describe("expected_attention")["state"]["query_tokens"] == 896
    h2o = describe("h2o")["state"]
    assert h2o["trait_bytes"] == 4 * 28 * 4 and h2o["trait_tokens"] == 4 / 512
    shared = describe("cask")["state"]
    assert all(trait["per"] == "token" for trait in shared["traits"].values())
    assert shared["trait_bytes"] == sum(trait["bytes"] for trait in shared["traits"].values())
    assert describe("triattention")["state"] | {"geometry": ""} == {
        "geometry": "", "queries": 0, "query_bytes": 0, "query_tokens": 0, "traits": {}, "trait_bytes": 0,
        "trait_tokens": 0, "bias": None, "packing": None,
    }  # fmt: skip


def test_compositions():
    assert describe("fullkv")["composition"] == {
        "scorer": None, "selector": None, "allocation": None, "cadence": "never", "representation": None,
    }  # fmt: skip
    assert describe("tri_vote")["composition"]["cadence"] == "slack(128), 2 chains"
    assert describe("alpha")["null"] == {"lambda": 0.0} and describe("alpha")["reference"] == "triattention"
    assert describe("tri_adakv")["mechanism"] == "M3" and describe("alpha")["mechanism"] is None


def test_the_reference_geometry_is_the_specified_one():
    shape = reference_geometry()
    assert (shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim, shape.entry_bytes) == (28, 28, 4, 128, 512)


def test_an_unknown_method():
    with pytest.raises(MethodError, match="did you mean snapkv"):
        describe("snapvk")
