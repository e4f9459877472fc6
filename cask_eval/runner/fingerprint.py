"""What ran: interpreter, packages, device, the toolkit's own source and the methods' sources, as loaded."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import torch

import cask_eval
from cask_eval.canonical import digest_tree
from cask_eval.engine.registry import load, source_packages
from cask_eval.ledger.events import Environment, PackageLock
from cask_eval.protocol.keys import configs
from cask_eval.protocol.model import Protocol

PACKAGES = ("cask-eval", "numpy", "safetensors", "scipy", "tokenizers", "torch", "transformers", "pydantic", "rfc8785")
SOURCES = (".py", ".html")


def environment(device: str) -> Environment:
    cuda = device.startswith("cuda")
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()}-{platform.machine()}",
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        cuda=torch.version.cuda if cuda else None,
        driver=_driver() if cuda else None,
        packages={name: _version(name) for name in PACKAGES},
        toolkit=digest_tree(Path(cask_eval.__file__).parent, SOURCES),
    )


def methods(protocol: Protocol) -> list[PackageLock]:
    """One lock per package that the protocol's arms are built from."""
    made = [load(arm.preset).make(arm.preset, params) for arm in protocol.arms.values() for _, params in configs(arm)]
    locks = []
    for name, root in source_packages(made).items():
        owners = packages_distributions().get(name, [])
        locks.append(
            PackageLock(name=name, version=_version(owners[0]) if owners else "unknown", digest=digest_tree(root))
        )
    return locks


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str | None:
    # The version of CUDA that the driver supports; torch has no public call for it.
    get = getattr(torch._C, "_cuda_getDriverVersion", None)
    return str(get()) if get else None
