"""A worker of a study: opens it as the driver has, refuses to run anything but what was registered, and gives back the
records of the trials that it is asked for. It writes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cask_eval.cluster.messages import Ready, Refused, Some, answer, answers
from cask_eval.engine import capacity
from cask_eval.engine.usage import Usage
from cask_eval.errors import CaskError, DriftError
from cask_eval.ledger.events import Environment, Register
from cask_eval.records.model import Record
from cask_eval.runner.study import open_study, refuse_drift
from cask_eval.runner.trials import Batch, Bench, device_is_lost
from cask_eval.tasks import data
from cask_eval.workspace import Workspace


class StudyWorker:
    """`root` is the workspace, at the same path on every node; `place` where the driver looks for data first. cpus:
    that it has to itself, 0 where it has a GPU."""

    def __init__(
        self,
        root: str,
        registered: Register,
        registration: str,
        seed_root: str,
        device: str,
        slots: int | None,
        place: str,
        cpus: int,
    ):
        calm(cpus)
        self.root, self.registered, self.device, self.place = root, registered, device, place or None
        self.about = (registration, seed_root, device, slots)

    def ready(self) -> Ready | Refused:
        """Everything that was locked is measured again, here. A study that differs is refused by name."""
        return answer(self._check)

    def _check(self) -> Environment:
        space = workspace(self.root)
        with data.at(self.place):
            study = open_study(space, space.resolve(self.registered.protocol_path))
        if study.loaded.digest != self.registered.protocol_digest:
            raise DriftError(f"{self.registered.protocol_path} differs from what was registered; restore it")
        refuse_drift(study, self.registered, self.device)
        self.bench = Bench(study, *self.about)
        return self.registered.environment

    def work(
        self, batch: Batch, trials: tuple[tuple[str, int], ...], references: Mapping[tuple[str, int], Record] | None
    ) -> Iterator:
        """The records of these trials, each as it finishes, with their numbers per token where they are replays; in the
        end, how much of the work was of use."""
        yield from answers(self._results(batch, trials, references), device_is_lost)

    def _results(self, batch, trials, references) -> Iterator[Some]:
        wanted = {batch.key(*trial) for trial in trials}
        self.bench.usage = Usage()
        for records, tokens in self.bench.results(batch, _AllBut(wanted), references):
            yield Some(tuple((r.problem, r.sample) for r in records), (records, tokens))
        yield Some((), self.bench.usage)


class _AllBut:
    """What has been done, seen from a block: everything that is not in it."""

    def __init__(self, wanted: set):
        self.wanted = wanted

    def __contains__(self, key) -> bool:
        return key not in self.wanted


def calm(cpus: int) -> None:
    """Libraries that log on load may not fill the cluster's logs, as a worker has no terminal; and of its node's memory
    it takes what it takes of its CPUs."""
    if cpus:
        capacity.only(cpus / (os.cpu_count() or cpus))
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def workspace(root: str) -> Workspace:
    """Raises CaskError where the workspace is not there."""
    if not Path(root).is_dir():
        raise CaskError(f"{root} is not there; share the workspace's disk, so that it lies on every node at one path")
    return Workspace(root)
