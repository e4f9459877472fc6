"""Which Triton kernels are in use: those that `CASK_EVAL_KERNELS` names, by default none.

What a kernel computes differs from the eager operators in the last digits, so the kernels in use belong to the
environment that a registration locks (docs/adr/0019-kernels-are-chosen.md). Nothing here imports Triton before a kernel
is asked for.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from cask_eval.errors import KernelError

VARIABLE = "CASK_EVAL_KERNELS"
NAMES = ("attention", "compact", "trig_score", "top_k", "diverse")
"""The engine's two, and those of the methods in `cask_methods.kernels`."""


def chosen() -> tuple[str, ...]:
    """The kernels that were asked for, in the order of `NAMES`. Raises KernelError when the variable names one that
    does not exist, or Triton cannot be imported."""
    value = os.environ.get(VARIABLE)
    return _parsed(value) if value else ()


def use(name: str, x: Tensor) -> bool:
    """Whether kernel `name` was asked for and can run where `x` is: on CUDA, or anywhere under Triton's interpreter,
    which is for tests. Raises KernelError as `chosen`."""
    value = os.environ.get(VARIABLE)
    return bool(value) and name in _parsed(value) and (x.is_cuda or interpreted())


def interpreted() -> bool:
    """Whether Triton runs kernels in Python (it decides when it is imported)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on(x: Tensor) -> AbstractContextManager:
    """Inside, kernels are launched on the device of `x`: Triton takes the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@cache
def _parsed(value: str) -> tuple[str, ...]:
    names = {part.strip() for part in value.split(",")} - {""}
    known = f"it takes {', '.join(NAMES)} separated by commas, or all"
    if unknown := sorted(names - {*NAMES, "all"}):
        raise KernelError(f"{VARIABLE}={value}: there is no kernel {', '.join(map(repr, unknown))}; {known}")
    if names:
        try:
            import_module("triton")
        except ImportError as error:
            raise KernelError(
                f"{VARIABLE}={value}: these kernels need Triton, which cannot be imported ({error}); "
                f"pip install 'cask-eval[kernels]' (Linux), or unset {VARIABLE}"
            ) from error
    return tuple(name for name in NAMES if name in names or "all" in names)
