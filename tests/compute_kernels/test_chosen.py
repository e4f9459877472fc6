"""Which kernels are in use, and what says so."""

import subprocess
import sys

import pytest
import torch

from cask_eval.canonical import canonical, digest
from cask_eval.engine import kernels
from cask_eval.errors import CaskError, KernelError
from cask_eval.ledger.events import Environment
from cask_eval.runner import fingerprint

CPU = torch.zeros(1)


def test_by_default_there_are_none(monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert kernels.chosen() == () and not any(kernels.use(name, CPU) for name in kernels.NAMES)
    environment = fingerprint.environment("cpu")
    assert "kernels" not in environment.model_dump() and "triton" not in environment.packages


@pytest.mark.parametrize("value", ["flash", "attention,flash", "ALL"])
def test_an_unknown_name_is_an_error(monkeypatch, value):
    monkeypatch.setenv(kernels.VARIABLE, value)
    with pytest.raises(KernelError, match=f"CASK_EVAL_KERNELS={value}: there is no kernel .* it takes attention, "):
        kernels.use("attention", CPU)
    assert issubclass(KernelError, CaskError)


def test_without_triton_it_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels._parsed.cache_clear()
    monkeypatch.setenv(kernels.VARIABLE, "top_k")
    with pytest.raises(KernelError, match=r"CASK_EVAL_KERNELS=top_k: .* Triton, .* pip install 'cask-eval\[kernels\]'"):
        kernels.chosen()


@pytest.fixture
def triton():
    kernels._parsed.cache_clear()
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'cask-eval[kernels]'")


@pytest.mark.parametrize(
    ("value", "names"),
    [("all", kernels.NAMES), ("top_k, attention,", ("attention", "top_k")), ("top_k,all", kernels.NAMES), (" , ", ())],
)
def test_names(triton, monkeypatch, value, names):
    monkeypatch.setenv(kernels.VARIABLE, value)
    assert kernels.chosen() == names


def test_tensors_on_a_cpu_take_the_eager_path(triton, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "all")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not kernels.use("top_k", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.use("top_k", CPU)


def test_the_environment_names_them(triton, monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    plain = fingerprint.environment("cpu")
    monkeypatch.setenv(kernels.VARIABLE, "top_k,attention")
    named = fingerprint.environment("cpu")
    assert named.kernels == "attention,top_k" and named.packages["triton"]
    assert named != plain and digest(named.model_dump()) != digest(plain.model_dump())
    monkeypatch.setenv(kernels.VARIABLE, "attention, top_k")
    assert fingerprint.environment("cpu") == named
    assert Environment.model_validate(named.model_dump()) == named


def test_environments_without_kernels_are_what_they_were():
    old = {
        "python": "3.11",
        "platform": "Linux",
        "device": "cpu",
        "cuda": None,
        "driver": None,
        "packages": {"torch": "2"},
        "toolkit": "sha256:" + "0" * 64,
    }
    assert canonical(Environment.model_validate(old).model_dump()) == canonical(old)


def test_a_run_with_other_kernels_than_registered_is_refused(triton, monkeypatch):
    from cask_eval.ledger.amend import differences

    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    plain = fingerprint.environment("cpu")
    monkeypatch.setenv(kernels.VARIABLE, "diverse")
    changed = [c.field for c in differences(plain.model_dump(), fingerprint.environment("cpu").model_dump())]
    assert changed == ["kernels", "packages.triton"]


def test_engine_and_methods_import_no_triton_of_their_own():
    code = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'triton':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Wall())
import cask_eval.engine.decode, cask_methods.presets.alpha
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
