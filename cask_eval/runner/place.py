"""Where a study's trials run. The steps know no more of it than this: it is checked against the registration, and opens
a bench for as long as the records are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from cask_eval.engine.usage import Usage
from cask_eval.ledger.events import Environment, Lost, Register
from cask_eval.ledger.state import StudyState
from cask_eval.runner import fingerprint
from cask_eval.runner.study import Study, refuse_drift
from cask_eval.runner.trials import Bench, Progress, Save, Work


class Runs(Protocol):
    """What runs batches and hands each record to `save`, in this process alone: ledger and records have one writer."""

    environment: Environment
    """What the trials run in."""

    usage: Usage
    """How much of what was computed was of use."""

    @property
    def lost(self) -> Lost | None:
        """What was run again because a worker had died; None where nothing was."""

    def run_all(self, work: Work, done: set, save: Save, progress: Progress) -> None:
        """Run what is not in `done` of several batches that do not wait for one another."""


class Place(Protocol):
    device: str
    """What this process itself loads models on."""

    def check(self, study: Study, registered: Register) -> None:
        """Raises DriftError when something that can be seen from this process is not as it was registered."""

    def bench(self, study: Study, state: StudyState, say: Callable[[str], None]) -> AbstractContextManager[Runs]:
        """Opened before anything is written to the ledger. Raises DriftError when what would run the trials is not
        what was registered."""


class _Bench(Bench):
    """A bench in this process; nothing of it can be lost without it."""

    lost = None

    @property
    def environment(self) -> Environment:
        return fingerprint.environment(self.device)


@dataclass(frozen=True)
class Here:
    """This process, on one device."""

    device: str
    slots: int | None = None

    def check(self, study: Study, registered: Register) -> None:
        refuse_drift(study, registered, self.device)

    @contextmanager
    def bench(self, study: Study, state: StudyState, say: Callable[[str], None]) -> Iterator[Runs]:
        yield _Bench(study, state.register[0].hash, state.seed_root(), self.device, self.slots)
