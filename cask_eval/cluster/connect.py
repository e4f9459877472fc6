"""Reaching a Ray cluster, and counting the workers that it has room for."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from cask_eval.errors import CaskError

START = "start one with `ray start --head` on one machine and `ray start --address=HOST:6379` on the others"

# What a local instance may keep of objects; records and tokens are small.
STORE_BYTES = 256 << 20

# CPUs of one worker whose model is worth several threads.
SHARE = 8


@dataclass(frozen=True)
class Size:
    """What one worker takes."""

    gpus: int
    cpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def places(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many workers the nodes, each given by its resources, have room for. A GPU has its worker even where a
        node says that it has no CPUs."""
        if self.gpus:
            return sum(int(node.get("GPU", 0)) // self.gpus for node in nodes)
        return sum(int(node.get("CPU", 0)) // self.cpus for node in nodes)


def size_of(nodes: Sequence[Mapping[str, float]], device: str, small: bool) -> Size:
    """A GPU for each worker where there are GPUs (or `device` asks for them), else a share of the CPUs: one for a small
    model, which is faster with one thread (docs/adr/0006), else as many as the smallest node has, up to 8. Raises
    CaskError when the cluster has nothing of the kind."""
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device == "cuda" and not gpus:
        raise CaskError("--device cuda: the cluster has no GPU; add a node that has, or leave the option out")
    if gpus and device != "cpu":
        return Size(gpus=1, cpus=0)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise CaskError("--ray: no node of the cluster has a CPU or a GPU to run on; add one that has")
    return Size(gpus=0, cpus=1 if small else min(SHARE, *cpus))


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The `ray` module, connected. `address`: auto, or HOST:PORT. Raises CaskError when Ray is not installed or the
    cluster cannot be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    # GPUs are hidden from workers that have none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        import ray
    except ImportError:
        raise CaskError("--ray: Ray is not installed; run: pip install 'cask-eval[ray]'") from None
    before = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if address == "auto":
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            _local(ray, quiet)
    else:
        _join(ray, address, quiet)
    try:
        with suppress(ValueError):  # only the main thread may
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # Ray has put its own there
        yield ray
    finally:
        gc.collect()  # references that are found to be garbage during another connection may crash it
        ray.shutdown()


def _local(ray: Any, quiet: dict) -> None:
    try:
        ray.init(object_store_memory=STORE_BYTES, include_dashboard=False, **quiet)
    except (RuntimeError, ValueError, OSError) as error:
        raise CaskError(f"--ray auto: no local instance could be started: {_line(error)}; {START}") from None


def host_and_port(address: str) -> tuple[str, str]:
    """The parts of an address that is not auto. Raises CaskError."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise CaskError(f"--ray {address!r}: is no HOST:PORT; give that of the head node, such as 10.0.0.1:6379, or auto")
    return host, port


def _join(ray: Any, address: str, quiet: dict) -> None:
    host, port = host_and_port(address)
    # Asked first, because Ray itself tries for minutes and then ends the process.
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise CaskError(f"--ray {address}: nothing answers there ({_line(error)}); {START}") from None
    try:
        ray.init(address=address, **quiet)
    except (RuntimeError, ValueError, OSError, SystemExit) as error:
        raise CaskError(
            f"--ray {address}: {_line(error)}; the command must run on a node of the cluster, with the same versions "
            f"of Ray and Python; {START}"
        ) from None


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300].rstrip(".") or type(error).__name__
