"""What workers say to the driver. Errors are said and not raised: what crosses a process boundary as an exception may
not arrive as one."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cask_eval.errors import CaskError
from cask_eval.ledger.events import Environment


@dataclass(frozen=True)
class Ready:
    """A worker can run trials. Of one that refuses to, `environment` is None where it was not measured."""

    host: str
    pid: int
    environment: Environment | None = None

    @classmethod
    def here(cls, environment: Environment | None = None) -> Ready:
        return cls(socket.gethostname(), os.getpid(), environment)

    @property
    def ready(self) -> Ready:
        return self


@dataclass(frozen=True)
class Refused:
    """A worker does not run this, for an error of `cask_eval.errors`."""

    kind: str
    message: str
    ready: Ready


@dataclass(frozen=True)
class Broken:
    """A worker met a fault that says nothing about a trial. device: its device is lost and another worker may do
    better."""

    message: str
    traceback: str
    device: bool


@dataclass(frozen=True)
class Some:
    """Results of these trials of a block; `found` is what they are."""

    trials: tuple[Any, ...]
    found: Any


def answer(check: Callable[[], Environment]) -> Ready | Refused:
    """What a worker says when it has checked where it is."""
    try:
        return Ready.here(check())
    except CaskError as error:
        return Refused(type(error).__name__, str(error), Ready.here())


def answers(results: Iterator[Some], device_is_lost: Callable[[Exception], bool]) -> Iterator[Some | Refused | Broken]:
    """What a worker says of a block: its results, and why there are no more where it ends early."""
    try:
        yield from results
    except CaskError as error:
        yield Refused(type(error).__name__, str(error), Ready.here())
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:300]}"
        yield Broken(text, traceback.format_exc(), device_is_lost(error))
