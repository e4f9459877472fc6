"""Kernels are compiled where there is a CUDA device, and interpreted on the CPU elsewhere (tests/conftest.py)."""

import os

import pytest
import torch

from cask_eval.engine import kernels


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device():
    """Where kernels can be run."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'cask-eval[kernels]'")
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no CUDA device, and Triton is not told to interpret (TRITON_INTERPRET=1)")
    try:
        from probe import probe

        probe()
    except Exception as error:  # Triton 3.6's interpreter and NumPy 2.4 do not go together
        pytest.skip(f"this Triton's interpreter does not work here: {error!r}")
    return torch.device("cpu")


@pytest.fixture
def use(monkeypatch):
    """Ask for these kernels, or for none."""

    def ask(names):
        monkeypatch.setenv(kernels.VARIABLE, names)

    return ask
