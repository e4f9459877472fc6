"""The workers of one run: started where there is room, handed blocks, replaced when they die. The driver alone decides
and writes; a worker is asked for results and keeps none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cask_eval import errors
from cask_eval.cluster.connect import Size
from cask_eval.cluster.messages import Broken, Ready, Refused, Some
from cask_eval.cluster.queue import ATTEMPTS, Block, Queue, Tally
from cask_eval.errors import CaskError, StateError

# Seconds: how often the cluster is looked at for room; how long nothing may be heard while no trial runs, where there
# is room for workers (a large model is digested and loaded first) and where there is none.
LOOK, PATIENCE, DESERTED = 2.0, 1800.0, 120.0

# Workers that may die one after the other before they are ready.
STILLBORN = 5


@dataclass(eq=False)
class Hand:
    """One worker as the driver sees it. `news`: what is waited for, None where it is idle. `block` and `left`: what it
    runs, and the trials of that without a result yet. `refused`: why it will not run anything, or None."""

    actor: Any
    news: Any = None
    ready: Ready | None = None
    refused: Refused | None = None
    block: Block | None = None
    left: dict[Any, None] = field(default_factory=dict)
    held: Any = None

    @property
    def where(self) -> str:
        return f"worker {self.ready.pid} on {self.ready.host}" if self.ready else "a worker that was starting"


class Crew:
    """Workers of the class `worker`, made with `arguments`, on a connected cluster."""

    def __init__(self, ray: Any, size: Size, worker: type, arguments: Sequence[Any], say: Callable[[str], None]):
        self.ray, self.size, self.say = ray, size, say
        self.remote = ray.remote(worker).options(
            num_gpus=size.gpus, num_cpus=size.cpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self.arguments = [ray.put(a) for a in arguments]
        self.hands: list[Hand] = []
        self.tally = Tally()
        self.stillborn, self.looked, self.heard = 0, 0.0, time.monotonic()
        self.first: Ready | None = None
        self.all_ready = False

    def muster(self) -> Ready:
        """Start workers wherever there is room; returns when they are ready, or when after the first no other one is
        for as long as that took: some may wait for resources that somebody else has. Raises what a worker refuses to
        run for: then nobody runs anything."""
        self._hire()
        self.say(f"starting {len(self.hands)} workers, each with {_taken(self.size)}")
        began = since = time.monotonic()
        patience = 30.0
        while any(not h.ready for h in self.hands) or not self.first:
            if self._hear():
                since = time.monotonic()
                patience = max(patience, since - began)
            if self.first and time.monotonic() - since > patience:
                break
            self._hire()
        self.all_ready = True
        return self.first

    def run(self, queue: Queue, order: Callable[[Block], tuple], receive: Callable[[Block, Some], None]) -> None:
        """Have everything in the queue run. order: what a worker is asked for a block (arguments of its `work`).
        receive: takes what came, at once. Raises StateError when trials had to be given up or no worker is left, after
        everything else has been received."""
        while queue or any(h.block for h in self.hands):
            self._hire()
            if self.hands and all(h.refused for h in self.hands):
                raise _error(self.hands[0].refused, f"no worker is left but those that differ; {self.hands[0].where}")
            idle = [h for h in self.hands if h.ready and not h.refused and h.block is None]
            for hand in idle:
                block = queue.take(sum(not h.refused for h in self.hands), hand.held)
                if block is None:
                    break
                hand.block, hand.left, hand.held = block, dict.fromkeys(block.trials), queue.jobs[block.job].group
                hand.news = hand.actor.work.options(num_returns="streaming").remote(*order(block))
            self._hear(queue, receive)
        if queue.given_up:
            block, why = queue.given_up[0]
            raise StateError(
                f"{len(queue.given_up)} trials could not be run, because {ATTEMPTS} workers or more died over each; "
                f"the first is {queue.jobs[block.job].name} {_name(block.trials[0])} ({why}). All others are saved. "
                "Find out what kills the workers (memory of the machine is the usual cause: give --slots less), then "
                "run the same command again"
            )

    def dismiss(self) -> None:
        """End all workers, and let go of everything of Ray's: what outlives its connection may crash the next one."""
        for hand in self.hands:
            self.ray.kill(hand.actor)
            hand.actor = hand.news = None
        self.hands.clear()
        self.arguments.clear()
        self.remote = None

    # --- what happens between

    def _hire(self) -> None:
        """Start workers where there is room for more than there are."""
        now = time.monotonic()
        if now - self.looked < LOOK and self.looked:
            return
        self.looked = now
        nodes = [n["Resources"] for n in self.ray.nodes() if n["Alive"]]
        room = self.size.places(nodes)
        for _ in range(room - len(self.hands)):
            actor = self.remote.remote(*self.arguments)
            self.hands.append(Hand(actor, actor.ready.remote()))
        if any(h.block for h in self.hands):
            self.heard = now
        silence = now - self.heard
        if silence > (PATIENCE if room else DESERTED):
            raise StateError(
                f"no worker was heard of for {silence / 60:.0f} minutes: the cluster has room for {room}, and `ray "
                "status` says who takes it; finished trials are saved, run the same command again when there is room"
            )

    def _hear(self, queue: Queue | None = None, receive: Callable[[Block, Some], None] | None = None) -> bool:
        """Wait a moment for news and act on it; returns whether there were any."""
        waiting = {h.news: h for h in self.hands if h.news is not None}
        if not waiting:
            time.sleep(LOOK / 4)
            return False
        found, _ = self.ray.wait(list(waiting), num_returns=1, timeout=LOOK)
        if found:  # and all others that have some: the first in the list must not keep the last from its next block
            found, _ = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for news in found:
            self.heard = time.monotonic()
            hand = waiting[news]
            if hand.block is None:
                self._greet(hand)
            else:
                self._take(hand, queue, receive)
        return bool(found)

    def _greet(self, hand: Hand) -> None:
        """A worker that was starting says what it found, or has died."""
        try:
            answer = self.ray.get(hand.news)
        except self.ray.exceptions.RayError as error:
            self._bury(hand, None, _reason(error))
            self.stillborn += 1
            if self.stillborn >= STILLBORN or isinstance(error, self.ray.exceptions.RayTaskError):
                raise StateError(
                    f"--ray: workers die before they are ready: {_reason(error)}; cask-eval must be installed in the "
                    "same version on every node, and its memory must hold the model"
                ) from None
            return
        hand.news, hand.ready, self.stillborn = None, answer.ready, 0
        if isinstance(answer, Ready):
            self.first = self.first or answer
            if answer.environment == self.first.environment:
                return
            said = (
                f"its environment is not that of worker {self.first.pid} on {self.first.host}: "
                f"{_difference(answer, self.first)}; install the same on every node"
            )
            answer = Refused(errors.DriftError.__name__, said, answer)
        if not self.all_ready:
            raise _error(answer, hand.where)
        # It keeps its place, so that no other worker is started there to find the same.
        hand.refused = answer
        self.say(f"{hand.where} is left out: {answer.message}")

    def _take(self, hand: Hand, queue: Queue, receive: Callable[[Block, Some], None]) -> None:
        """A worker that runs a block has a result, is through, or has died."""
        try:
            answer = self.ray.get(next(hand.news))
        except StopIteration:
            if hand.left:
                self._bury(hand, queue, "it stopped early")
                return
            hand.news = hand.block = None
            return
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            self._bury(hand, queue, _reason(error))
            return
        if isinstance(answer, Refused):
            raise _error(answer, hand.where)
        if isinstance(answer, Broken):
            if not answer.device:
                raise RuntimeError(f"{hand.where}:\n{answer.traceback}")
            self._bury(hand, queue, answer.message)
            return
        for trial in answer.trials:
            hand.left.pop(trial)
        receive(hand.block, answer)

    def _bury(self, hand: Hand, queue: Queue | None, why: str) -> None:
        """A worker is gone: what it had not finished is queued again."""
        self.hands.remove(hand)
        self.ray.kill(hand.actor)  # it may only be out of reach
        hand.actor = hand.news = None
        left = list(hand.left) if hand.block else []
        self.tally.died(hand.block, left)
        if not left:
            self.say(f"{hand.where} has died ({why})")
            return
        name, again = queue.jobs[hand.block.job].name, queue.died(hand.block, left, why)
        after = "given up"
        if again:
            parts = "" if len(again) == 1 else f" in {len(again)} parts"
            after = f"queued again{parts}, attempt {again[0].deaths + 1}"
        self.say(f"{hand.where} has died ({why}); {len(left)} trials of {name} are {after}")


@contextmanager
def crew(ray: Any, size: Size, worker: type, arguments: Sequence[Any], say: Callable[[str], None]) -> Iterator[Crew]:
    """Workers that are ready and, in the end, gone. Raises what `Crew.muster` raises."""
    made = Crew(ray, size, worker, arguments, say)
    try:
        made.muster()
        yield made
    finally:
        made.dismiss()


def _error(answer: Refused, where: str) -> CaskError:
    """The error that a worker met, as the kind that it is."""
    kind = getattr(errors, answer.kind, CaskError)
    text = f"{where}: {answer.message}"
    return kind([text]) if kind is errors.ProtocolError else kind(text)


def _difference(one: Ready, other: Ready) -> str:
    a, b = one.environment.model_dump(), other.environment.model_dump()
    flat = [{**{k: v for k, v in e.items() if k != "packages"}, **e["packages"]} for e in (a, b)]
    return ", ".join(f"{k} is {flat[0].get(k)}, not {v}" for k, v in flat[1].items() if flat[0].get(k) != v)


def _reason(error: Exception) -> str:
    """What Ray says about a death, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "died" in line or "killed" in line]
    return f"{type(error).__name__}: {(telling or lines or [''])[-1][:300]}"


def _taken(size: Size) -> str:
    return "a GPU" if size.gpus else "a CPU" if size.cpus == 1 else f"{size.cpus} CPUs"


def _name(trial: Any) -> str:
    return "/".join(str(part) for part in trial) if isinstance(trial, tuple) else str(trial)
