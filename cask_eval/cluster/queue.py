"""Which trials a worker gets next, and what becomes of those whose worker has died. Plain bookkeeping: no cluster, no
torch, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from cask_eval.ledger.events import Lost

# Workers that may die over the same block before it is taken apart, and over one trial before it is given up.
ATTEMPTS = 3

# The fewest trials that are worth a call, and the most that one worker has at once, as a multiple of its slots.
FEW, MANY = 4, 4


@dataclass(frozen=True)
class Job:
    """Trials that are run in the same way. name: for messages. group: what a worker has to hold for them, such as a
    model; a worker goes on with what it holds as long as it can. whole: the trials stay together, because their numbers
    depend on their company."""

    name: str
    group: Hashable
    trials: tuple[Any, ...]
    whole: bool = False


@dataclass(frozen=True)
class Block:
    """Trials of one job that go to one worker; `deaths` workers have died over them."""

    job: int
    trials: tuple[Any, ...]
    deaths: int = 0


class Queue:
    """The trials of several jobs that do not wait for one another. `slots`: sequences that a worker has in flight."""

    def __init__(self, jobs: Sequence[Job], slots: int):
        self.jobs, self.slots = list(jobs), slots
        self.fresh: list[deque] = [deque(job.trials) for job in jobs]
        self.again: deque[Block] = deque()
        self.given_up: list[tuple[Block, str]] = []

    def __bool__(self) -> bool:
        """Whether there is something to take."""
        return bool(self.again) or any(self.fresh)

    def take(self, workers: int, held: Hashable = None) -> Block | None:
        """The next block for one of so many workers, of its own group where there is one: what died before comes first,
        then large blocks, which keep a worker's slots full, and towards the end small ones, so that all end together.
        None when nothing is left to take."""
        groups = {self.jobs[b.job].group for b in self.again}
        left: dict[Hashable, int] = {}
        for job, trials in zip(self.jobs, self.fresh):
            if trials:
                left[job.group] = left.get(job.group, 0) + len(trials)
        if not groups and not left:
            return None
        group = held if held in groups or held in left else _first(groups, left)
        for block in self.again:
            if self.jobs[block.job].group == group:
                self.again.remove(block)
                return block
        index = next(i for i, job in enumerate(self.jobs) if job.group == group and self.fresh[i])
        trials = self.fresh[index]
        size = -(-sum(left.values()) // (2 * max(1, workers)))
        size = max(min(FEW, self.slots), min(size, MANY * self.slots))
        count = len(trials) if self.jobs[index].whole else min(size, len(trials))
        return Block(index, tuple(trials.popleft() for _ in range(count)))

    def died(self, block: Block, left: Sequence[Any], why: str) -> list[Block]:
        """The worker of a block has died, and the trials in `left` have no record. Returns what is queued again: the
        same trials a few times, then halves of them, so that a trial that takes its worker along is found and the
        others are run. One that does so alone is given up."""
        deaths, trials = block.deaths + 1, tuple(left)
        if not trials:
            return []
        if deaths < ATTEMPTS:
            new = [Block(block.job, trials, deaths)]
        elif len(trials) > 1:
            middle = len(trials) // 2
            new = [Block(block.job, part, deaths) for part in (trials[:middle], trials[middle:])]
        else:
            self.given_up.append((Block(block.job, trials, deaths), why))
            new = []
        self.again.extend(new)
        return new


def _first(groups: set, left: dict[Hashable, int]) -> Hashable:
    """Where a worker that holds nothing begins: where something died, else where most is left."""
    return next(iter(groups)) if groups else max(left, key=left.__getitem__)


class Tally:
    """What died, added up over a run."""

    def __init__(self):
        self.workers, self.again, self.attempts = 0, set(), 1

    def died(self, block: Block | None, left: Sequence[Any] = ()) -> None:
        """A worker has died, over a block whose trials in `left` have no record."""
        self.workers += 1
        if left:
            self.again |= {(block.job, trial) for trial in left}
            self.attempts = max(self.attempts, block.deaths + 2)

    @property
    def lost(self) -> Lost | None:
        """None when nothing was lost."""
        if not self.workers:
            return None
        return Lost(workers=self.workers, trials=len(self.again), attempts=self.attempts)
