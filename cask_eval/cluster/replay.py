"""A folder of replays on a cluster: the place that `replay` makes references and replays in, and its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cask_eval.canonical import digest_file
from cask_eval.cluster.connect import connected, size_of
from cask_eval.cluster.crew import Crew, crew
from cask_eval.cluster.messages import Ready, Refused, Some, answer, answers
from cask_eval.cluster.queue import Block, Job, Queue
from cask_eval.cluster.worker import calm, workspace
from cask_eval.engine.replay import dense
from cask_eval.errors import CaskError, DriftError
from cask_eval.ledger.events import Environment
from cask_eval.protocol.model import Model
from cask_eval.replay.records import Reference, Settings
from cask_eval.replay.references import Missing, Question, generated
from cask_eval.replay.run import Cell, Keep, Lacking, cells, replayed, requests, sources
from cask_eval.runner import fingerprint, models
from cask_eval.runner.trials import device_is_lost
from cask_eval.workspace import Workspace

# What the job of references is called for a worker, which holds the same for all of them.
REFERENCES = "references"


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster at `address`. wanted: the workers' device, auto, cpu or cuda. The rest is what `Here` has, or
    what a worker needs to make it."""

    address: str
    wanted: str
    model: Model
    space: Workspace
    statistics: Path | None
    questions: Sequence[Question]
    grid: Sequence[Cell]

    def __post_init__(self):
        if self.wanted not in ("auto", "cpu", "cuda"):
            raise CaskError(f"--device {self.wanted}: Ray says which GPU a worker has; use auto, cpu or cuda")

    @contextmanager
    def bench(self, settings: Settings, say: Callable[[str], None]) -> Iterator[Spread]:
        with connected(self.address) as ray:
            nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
            size = size_of(nodes, self.wanted, models.weights(self.model, self.space) < 4 * models.SMALL)
            statistics = str(self.statistics.resolve()) if self.statistics else None
            where = (str(self.space.root), statistics, list(self.questions), size.device, size.cpus)
            arguments = (settings, self.model, *where)
            with crew(ray, size, ReplayWorker, arguments, say) as workers:
                yield Spread(settings, workers, self.grid)


class Spread:
    """`cask_eval.replay.run.Runs`, over workers."""

    def __init__(self, settings: Settings, workers: Crew, grid: Sequence[Cell]):
        self.settings, self.workers = settings, workers
        self.index = {(cell.arm, cell.budget): i for i, cell in enumerate(grid)}

    @property
    def environment(self) -> Environment:
        return self.workers.first.environment

    def references(self, missing: list[Missing], keep: Callable[[Reference], None]) -> None:
        job = Job(REFERENCES, REFERENCES, tuple((q.problem, sample) for q, sample in missing))
        self.workers.run(
            Queue([job], self.settings.slots),
            lambda block: (REFERENCES, None, block.trials),
            lambda block, some: keep(some.found),
        )

    def replays(self, lacking: list[Lacking], keep: Keep) -> None:
        rows = [(number, cell, {r.key: r for r in some}) for number, part in enumerate(lacking) for cell, some in part]
        jobs = [Job(f"{cell.arm}@{cell.budget}", number, tuple(some), whole=True) for number, cell, some in rows]

        def order(block: Block) -> tuple:
            number, cell, some = rows[block.job]
            return number, self.index[cell.arm, cell.budget], tuple(some[key] for key in block.trials)

        self.workers.run(
            Queue(jobs, self.settings.slots), order, lambda block, some: keep(rows[block.job][1], *some.found)
        )


class ReplayWorker:
    """`root` is the workspace and `statistics` a file, at the same paths on every node. It writes nothing."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        root: str,
        statistics: str | None,
        questions: Sequence[Question],
        device: str,
        cpus: int,
    ):
        calm(cpus)
        self.settings, self.model, self.root, self.device = settings, model, root, device
        self.statistics = Path(statistics) if statistics else None
        self.asked = {q.problem: q for q in questions}
        self.number, self.full = None, {}

    def ready(self) -> Ready | Refused:
        """The model, what it is measured with and the code, as the driver has them."""
        return answer(self._check)

    def _check(self) -> Environment:
        settings, space = self.settings, workspace(self.root)
        here = fingerprint.environment(self.device)
        longest = max(len(q.ids) for q in self.asked.values())
        lock = models.lock(self.model, space, self.device, longest, settings.max_new_tokens)
        statistics = digest_file(self.statistics) if self.statistics and self.statistics.is_file() else None
        there = settings.environment
        found = {
            "toolkit": (here.toolkit, there.toolkit),
            "python": (here.python, there.python),
            "packages": (here.packages, there.packages),
            "methods": (sources(settings.arms), settings.methods),
            "model_digest": (lock.digest, settings.model_digest),
            "calibration": (statistics, settings.calibration),
        }
        if said := [f"{name} is {mine}, the driver's is {its}" for name, (mine, its) in found.items() if mine != its]:
            raise DriftError("; ".join(said) + "; install the same on every node, and share the model's files")
        decoder, tokenizer = models.loaded(self.model, space, self.device)
        self.decoder = decoder
        self.grid = cells(settings, decoder, self.statistics, models.encoder(tokenizer))
        return here

    def work(self, number: int | str, cell: int | None, some: tuple) -> Iterator:
        """The references of these questions and samples; or these references, of the block `number`, through a cell."""
        made = self._references(some) if number == REFERENCES else self._replays(number, self.grid[cell], list(some))
        yield from answers(made, device_is_lost)

    def _references(self, wanted: Sequence[tuple[str, int]]) -> Iterator[Some]:
        missing = [(self.asked[problem], sample) for problem, sample in wanted]
        for reference in generated(self.decoder, self.grid[0].policy, self.settings, missing):
            yield Some((reference.key,), reference)

    def _replays(self, number: int, cell: Cell, some: list[Reference]) -> Iterator[Some]:
        if number != self.number:
            self.number, self.full = number, {}  # what the last block's logits took is free before there are new ones
        given = requests(self.settings, self.asked, some)
        for key, request in given.items():
            if key not in self.full:
                self.full[key] = dense(self.decoder, request)
        found = replayed(cell, some, given, self.full, self.decoder, self.settings.slots)
        yield Some(tuple(given), found)
