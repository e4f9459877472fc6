"""What ran: interpreter, packages, device, the toolkit's own source and the methods' sources, as loaded."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import torch

import cask_eval
from cask_eval.canonical import digest_bytes, digest_tree
from cask_eval.engine import kernels
from cask_eval.engine.registry import load, source_packages
from cask_eval.invocation import argv, commit
from cask_eval.ledger.events import Environment, Invocation, PackageLock
from cask_eval.protocol.keys import configs
from cask_eval.protocol.model import FULL, Arm, Protocol

PACKAGES = ("cask-eval", "numpy", "safetensors", "scipy", "tokenizers", "torch", "transformers", "pydantic", "rfc8785")
PACKAGES += ("gguf", "jinja2")  # what unpacks weights, and what writes out chat templates
SOURCES = (".py", ".html")


def environment(device: str) -> Environment:
    """Raises KernelError when a kernel is asked for that cannot be had."""
    cuda = device.startswith("cuda")
    # They change last digits, so they are locked with the version of what compiles them, on whatever device.
    in_use = kernels.chosen()
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()}-{platform.machine()}",
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        cuda=torch.version.cuda if cuda else None,
        driver=_driver() if cuda else None,
        packages={name: _version(name) for name in (*PACKAGES, *(["triton"] if in_use else []))},
        toolkit=digest_tree(Path(cask_eval.__file__).parent, SOURCES),
        kernels=",".join(in_use),
    )


def invocation(root: Path) -> Invocation:
    """How this process was called, seen from the workspace `root`."""
    return Invocation(argv=argv(sys.argv[1:], root), commit=commit(Path(cask_eval.__file__).parent))


def methods(protocol: Protocol) -> list[PackageLock]:
    """One lock per package that the protocol's arms are built from."""
    full = [Arm(preset=FULL)] if protocol.fidelity else []
    arms = [*protocol.arms.values(), *full]
    made = [load(arm.preset).make(arm.preset, params) for arm in arms for _, params in configs(arm)]
    return [_package(name, root) for name, root in source_packages(made).items()]


def task(plugin: Any) -> PackageLock:
    """The package that a task plug-in, a module or an object of a class, comes from."""
    module = getattr(plugin, "__module__", None) or plugin.__name__
    name = module.partition(".")[0]
    package = sys.modules[name]
    return _package(name, Path(package.__file__).parent if hasattr(package, "__path__") else Path(package.__file__))


def _package(name: str, root: Path) -> PackageLock:
    owners = packages_distributions().get(name, [])
    found = digest_tree(root) if root.is_dir() else digest_bytes(root.read_bytes())
    return PackageLock(name=name, version=_version(owners[0]) if owners else "unknown", digest=found)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str | None:
    # The version of CUDA that the driver supports; torch has no public call for it.
    get = getattr(torch._C, "_cuda_getDriverVersion", None)
    return str(get()) if get else None
