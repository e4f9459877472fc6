"""Presets through the contract: masks, protection, batches, null settings, the registry."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from cask_methods.presets.alpha import Alpha
from cask_methods.presets.fullkv import FullKV
from cask_methods.presets.random_pp import RandomPP
from cask_methods.presets.recency import Recency
from cask_methods.presets.triattention import TriAttention
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, statistics

from cask_eval.engine import registry
from cask_eval.engine.contract import Host, Selection
from cask_eval.engine.method import Method, Policy
from cask_eval.errors import MethodError

EVICTING = [
    RandomPP(),
    RandomPP(sampling="reservoir", recent=2),
    Recency(),
    Recency(prompt="pinned", sink=0),
    TriAttention(),
    TriAttention(mode="per_head", prompt="compete"),
    TriAttention(recent=3, aggregation="max"),
    Alpha(),
    Alpha(mode="per_head"),
    Alpha(space="keys", tau="range", prompt="compete", sink=2, recent=2),
]
IDS = [f"{type(m).__name__}-{i}" for i, m in enumerate(EVICTING)]


def policy(method: Method, geo) -> Policy:
    scorer = method.scorer()
    if method.calibrated:
        scorer = dataclasses.replace(scorer, statistics=statistics(geo))
    return Policy(method, Host(geo), scorer, *method.parts()[1:])


@pytest.mark.parametrize("mode", ["per_layer_head", "per_head"])
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_alpha_at_lambda_zero_is_triattention(mode, seed):
    geo = geometry()
    e = entries(geo, seed=seed)
    # Keys drawn from a few make tied scores.
    e = dataclasses.replace(e, keys=e.keys.nan_to_num().sign())
    target = torch.tensor([12, 9, 6])
    params = {"mode": mode, "prompt": "pinned"}
    reference = policy(TriAttention.make("triattention", params), geo).compress(e, target).keep
    assert torch.equal(policy(Alpha.make("alpha", {**params, "lambda": "0"}), geo).compress(e, target).keep, reference)


def test_alpha_does_something_at_its_default():
    geo = geometry()
    e = entries(geo, lengths=(60,), prompts=(4,))
    e = dataclasses.replace(e, values=e.values.sign().abs() + 0.1 * e.values)
    target = torch.tensor([24])
    assert not torch.equal(
        policy(Alpha(), geo).compress(e, target).keep, policy(TriAttention(), geo).compress(e, target).keep
    )


def test_per_head_keeps_the_same_positions_in_every_layer():
    geo = geometry()
    for preset in (TriAttention, Alpha):
        keep = policy(preset(mode="per_head"), geo).compress(entries(geo), torch.tensor([12, 9, 6])).keep
        assert (keep == keep[:1]).all()
        assert not torch.equal(keep[:, :, 0], keep[:, :, 1])


def test_nan_is_refused():
    geo = geometry()
    e = entries(geo)
    e.keys[1, 0, 1, 10] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        policy(TriAttention(), geo).compress(e, torch.tensor([12, 9, 6])).keep


def test_a_selector_that_miscounts_is_refused():
    class Greedy:
        def select(self, scores, candidates, quota, entries):
            return Selection(candidates)

    geo = geometry()
    e = entries(geo)
    p = policy(RandomPP(), geo)
    with pytest.raises(MethodError, match="Greedy did not select exactly its quota"):
        dataclasses.replace(p, selector=Greedy()).compress(e, torch.tensor([12, 9, 6])).keep


def test_impossible_targets_are_refused():
    e = entries(geometry())
    with pytest.raises(MethodError, match="cannot keep its target"):
        policy(RandomPP(), e.geometry).compress(e, torch.tensor([4, 9, 6])).keep
    with pytest.raises(MethodError, match="cannot keep its target"):
        policy(RandomPP(), e.geometry).compress(e, torch.tensor([21, 9, 6])).keep


def test_check_refuses_a_prompt_that_fills_the_budget():
    with pytest.raises(MethodError, match="above 122, or set the parameter prompt to 'outside'"):
        TriAttention().check(122, 64)
    with pytest.raises(MethodError, match="above 64"):
        TriAttention().check(64, 64)
    TriAttention().check(63, 64)
    TriAttention(prompt="outside").check(122, 64)
    TriAttention(prompt="compete").check(122, 64)
    with pytest.raises(MethodError, match="protect fewer"):
        Alpha(prompt="outside", recent=64).check(10, 64)
    with pytest.raises(MethodError, match="protect fewer"):
        Recency(sink=8).check(10, 8)
    FullKV().check(10_000, 64)


def test_protected_counts():
    assert TriAttention().protected_count(30) == 30
    assert TriAttention(sink=40, recent=5).protected_count(30) == 45
    assert TriAttention(prompt="compete", sink=4, recent=5).protected_count(30) == 9
    assert Recency().protected_count(30) == 4
    assert Recency(prompt="outside").protected_count(30) == 30
    assert FullKV().protected_count(30) == 0


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"lambda": "much"}, "lambda is 'much'; write a decimal"),
        ({"lambda": "NaN"}, "lambda is 'NaN'; write a decimal"),
        ({"lambda": "Infinity"}, "write a decimal"),
        ({"lambda": "-0.5"}, "at least 0"),
        ({"lambda_": "0.5"}, "unknown parameter 'lambda_'"),
        ({"prompt": "drop"}, "use one of pinned, outside, compete"),
        ({"delta": "128"}, "write a whole number"),
        ({"delta": 0}, "at least 1"),
        ({"normalise": "yes"}, "write true or false"),
        ({"tau": "std2"}, "use one of std, 1, range"),
    ],
)
def test_parameters_are_typed(params, says):
    with pytest.raises(MethodError, match=says):
        Alpha.make("alpha", params)


def test_make_reads_protocol_parameters():
    made = Alpha.make("alpha", {"lambda": "0.25", "tau": "1", "delta": 16, "mode": "per_head", "normalise": False})
    assert made == Alpha(lambda_=0.25, tau="1", delta=16, mode="per_head", normalise=False)
    assert made.schedule(64).delta == 16


def test_binding_reads_and_checks_statistics(tmp_path):
    geo = geometry()
    statistics(geo).save(tmp_path / "s.safetensors")
    bound = Alpha().bind(Host(geo, str(tmp_path / "s.safetensors")))
    e = entries(geo)
    target = torch.tensor([12, 9, 6])
    assert torch.equal(bound.compress(e, target).keep, policy(Alpha(), geo).compress(e, target).keep)
    with pytest.raises(MethodError, match="do not fit"):
        Alpha().bind(Host(geometry(layers=4), str(tmp_path / "s.safetensors")))
    with pytest.raises(MethodError, match="calibrat"):
        Alpha().bind(Host(geo))


def test_calibrator_measures_what_binding_accepts(tmp_path):
    geo = geometry()
    accumulator = TriAttention.calibrator(geo)
    for layer in range(geo.layers):
        accumulator.add(layer, torch.randn(5, geo.query_heads, geo.head_dim))
    accumulator.finish({"source": "here"}).save(tmp_path / "s.safetensors")
    measured = Alpha.read_calibration(tmp_path / "s.safetensors")
    assert measured.model == geo.name and measured.provenance == {"source": "here", "tokens": 5}
    TriAttention().bind(Host(geo, str(tmp_path / "s.safetensors")))
    with pytest.raises(MethodError, match="needs no calibration"):
        RandomPP.calibrator(geo)


def test_bfloat16_caches_are_scored_in_fp32():
    geo = geometry()
    e = entries(geo)
    e = dataclasses.replace(e, keys=e.keys.bfloat16(), values=e.values.bfloat16())
    for method in EVICTING:
        assert int(policy(method, geo).compress(e, torch.tensor([12, 9, 7])).keep.sum()) == 28 * 6


installed = pytest.mark.skipif("alpha" not in registry.available(), reason="the project is not installed")


@installed
def test_registry_finds_and_describes():
    assert {"fullkv", "random_pp", "recency", "triattention", "alpha"} <= set(registry.available())
    assert registry.load("alpha") is Alpha
    about = registry.describe("alpha")
    assert about["composition"] == {
        "scorer": "triattention",
        "selector": "diverse",
        "allocation": "uniform",
        "cadence": "slack(128)",
        "representation": "evict",
    }
    assert about["parameters"]["lambda"]["null"] == 0.0 and about["reference"] == "triattention"
    assert registry.describe("fullkv")["composition"]["cadence"] == "never"
    for name in ("fullkv", "random_pp", "recency", "triattention", "alpha"):
        made = registry.load(name)()
        assert made.validate(name) is None
        assert all(p["doc"] and p["source"] for p in registry.describe(name)["parameters"].values())


@installed
def test_registry_suggests_near_names():
    with pytest.raises(MethodError, match="did you mean triattention"):
        registry.load("triatention")


@installed
def test_registry_lists_without_torch():
    code = (
        "import sys; from cask_eval.engine import registry as r; assert 'alpha' in r.available(); "
        "assert 'torch' not in sys.modules and 'cask_methods' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PLUGIN = """
from dataclasses import dataclass
from cask_methods.presets.recency import Recency
from cask_methods.selectors.top_k import TopK

class Norm:
    def score(self, entries, candidates):
        return entries.values.norm(dim=-1)

@dataclass(frozen=True)
class Loudest(Recency):
    {field}
    def scorer(self): return Norm()
    def selector(self): return TopK()
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """plugin(field) installs a package `loud` with a preset `loudest` built from parts of cask_methods."""

    def install(field="extra: int = 1"):
        (tmp_path / "loud").mkdir()
        (tmp_path / "loud" / "__init__.py").write_text(PLUGIN.format(field=field))
        info = tmp_path / "loud-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[cask_eval.methods]\nloudest = loud:Loudest\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "loud", raising=False)

    return install


@installed
def test_every_package_a_method_is_built_from_is_located(plugin):
    plugin()
    alpha, loudest = registry.load("alpha"), registry.load("loudest")
    assert list(registry.source_packages([alpha()])) == ["cask_methods"]
    assert list(registry.source_packages([loudest()])) == ["cask_methods", "loud"]
    assert registry.describe("loudest")["parameters"]["extra"]["type"] == "int"


@installed
def test_a_parameter_that_no_protocol_can_give_is_refused(plugin):
    plugin("half: 'float | None' = None")
    with pytest.raises(MethodError, match="parameter half has type"):
        registry.load("loudest")
