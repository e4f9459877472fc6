"""A study's trials on a cluster: the place that `tune` and `confirm` run them in (`cask_eval.runner.place`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from cask_eval.cluster.connect import connected, size_of
from cask_eval.cluster.crew import Crew, crew
from cask_eval.cluster.messages import Some
from cask_eval.cluster.queue import Block, Job, Queue
from cask_eval.cluster.worker import StudyWorker
from cask_eval.engine.usage import Usage
from cask_eval.errors import CaskError
from cask_eval.ledger.events import Environment, Lost, PromptLock, Register
from cask_eval.ledger.state import StudyState
from cask_eval.runner import fingerprint, models
from cask_eval.runner.study import Study, described, refuse
from cask_eval.runner.trials import Progress, Save, Work, hand_on
from cask_eval.tasks import data


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster at `address`. wanted: the workers' device, auto, cpu or cuda."""

    address: str
    wanted: str
    slots: int | None
    device = "cpu"  # the driver leaves every GPU to the workers

    def __post_init__(self):
        if self.wanted not in ("auto", "cpu", "cuda"):
            raise CaskError(f"--device {self.wanted}: Ray says which GPU a worker has; use auto, cpu or cuda")

    def check(self, study: Study, registered: Register) -> None:
        """All but the models and the device: those are the workers', who check everything again where they are."""
        device = {name: getattr(registered.environment, name) for name in ("device", "cuda", "driver")}
        now = registered.model_copy(
            update={
                **described(study),
                "environment": fingerprint.environment("cpu").model_copy(update=device),
                "prompt": registered.prompt and PromptLock(file=study.asking.digest, tokens=registered.prompt.tokens),
            }
        )
        refuse(study, registered, now)

    @contextmanager
    def bench(self, study: Study, state: StudyState, say: Callable[[str], None]) -> Iterator[Spread]:
        event, registered = state.register
        with connected(self.address) as ray:
            nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
            small = all(models.weights(m, study.workspace) < 4 * models.SMALL for m in study.protocol.models)
            size = size_of(nodes, self.wanted, small)
            arguments = (
                str(study.workspace.root),
                registered,
                event.hash,
                state.seed_root(),
                size.device,
                self.slots,
                str(data.place() or ""),
                size.cpus,
            )
            with crew(ray, size, StudyWorker, arguments, say) as workers:
                yield Spread(study, workers, self.slots)


class Spread:
    """`cask_eval.runner.place.Runs`, over workers."""

    def __init__(self, study: Study, workers: Crew, slots: int | None):
        self.study, self.workers, self.usage = study, workers, Usage()
        # What a worker takes by itself is known to it alone; this is enough to keep its slots full.
        self.slots = slots or (128 if workers.size.gpus else 64)

    @property
    def environment(self) -> Environment:
        return self.workers.first.environment

    @property
    def lost(self) -> Lost | None:
        return self.workers.tally.lost

    def run_all(self, work: Work, done: set, save: Save, progress: Progress) -> None:
        samples = range(self.study.protocol.generation.samples)
        jobs = []
        for batch, _ in work:
            trials = [(p.id, s) for p in self.study.split(batch.phase).problems for s in samples]
            left = tuple(t for t in trials if batch.key(*t) not in done)
            name = " ".join(filter(None, (batch.cell.name, batch.arm, batch.config)))
            jobs.append(Job(name, batch.cell.model, left))

        def order(block: Block) -> tuple:
            batch, replays = work[block.job]
            known = replays.references if replays else {}
            own = {t: known[t] for t in block.trials if t in known}
            return batch, block.trials, own if replays else None

        def receive(block: Block, some: Some) -> None:
            if isinstance(some.found, Usage):
                self.usage = _added(self.usage, some.found)
                return
            records, tokens = some.found
            hand_on(records, tokens, save, progress, work[block.job][1])

        self.workers.run(Queue(jobs, self.slots), order, receive)


def _added(one: Usage, other: Usage) -> Usage:
    """Of both together; `most` is that of a worker."""
    sums = {f.name: getattr(one, f.name) + getattr(other, f.name) for f in fields(Usage)}
    return Usage(**{**sums, "most": max(one.most, other.most)})
