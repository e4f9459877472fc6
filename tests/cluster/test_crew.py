"""Workers that die, refuse, differ or never come, with a Ray that is played: what the driver makes of each."""

import itertools
import random
from types import SimpleNamespace

import pytest

from cask_eval.cluster import crew as crews
from cask_eval.cluster.connect import Size
from cask_eval.cluster.messages import Broken, Ready, Refused, Some
from cask_eval.cluster.queue import Job, Queue
from cask_eval.errors import DriftError, StateError
from cask_eval.ledger.events import Environment

ZERO = "sha256:" + "0" * 64
HERE = Environment(
    python="3", platform="L", device="cpu", cuda=None, driver=None, packages={"torch": "2"}, toolkit=ZERO
)


class Died(Exception):
    pass


class Fault(Died):
    pass


class Ray:
    """The little of Ray that the driver uses. `act(number)` makes the worker with this number: an object with `ready()`
    and `work(*order)`, whose methods may raise Died."""

    def __init__(self, act, nodes=({"CPU": 2.0},)):
        self.act, self.numbers, self.resources, self.killed = act, itertools.count(), list(nodes), []
        self.rng = random.Random(1)
        self.exceptions = SimpleNamespace(RayError=Died, RayTaskError=Fault)

    def remote(self, _):
        made = SimpleNamespace(remote=lambda *_: Actor(self.act(next(self.numbers))))
        return SimpleNamespace(options=lambda **_: made)

    def put(self, value):
        return value

    def nodes(self):
        return [{"Alive": True, "Resources": r} for r in self.resources]

    def wait(self, news, num_returns, timeout):
        return self.rng.sample(news, min(num_returns, self.rng.randint(1, len(news)))), []

    def get(self, found):
        if isinstance(found, Later):
            found = found.call()
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self, actor):
        self.killed.append(actor)


class Later:
    def __init__(self, call):
        self.call = call


class Stream:
    """An ended generator that raised hands out its error, as Ray's does."""

    def __init__(self, made):
        self.made = made

    def __next__(self):
        try:
            return next(self.made)
        except Died as error:
            return error


class Actor:
    def __init__(self, worker):
        self.ready = SimpleNamespace(remote=lambda: Later(worker.ready))
        self.work = SimpleNamespace(
            options=lambda **_: SimpleNamespace(remote=lambda *order: Stream(iter(worker.work(*order))))
        )


class Worker:
    """Runs trials in order; dies at those in `poison`, and after `life` of them."""

    def __init__(self, number=0, poison=(), life=10**9, answer=None):
        self.number, self.poison, self.left = number, poison, life
        self.answer = answer or Ready("node", number, HERE)

    def ready(self):
        return self.answer

    def work(self, block):
        for trial in block.trials:
            if trial in self.poison or not self.left:
                raise Died("the worker was killed")
            self.left -= 1
            yield Some((trial,), trial)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(crews, "LOOK", 0.0)


def run(ray, trials=20):
    """(what was received, what was said, the crew)."""
    got, said = [], []
    queue = Queue([Job("arm", "m", tuple((f"p{n}", 0) for n in range(trials)))], 4)
    with crews.crew(ray, Size(0, 1), object, (), said.append) as made:
        try:
            made.run(queue, lambda block: (block,), lambda block, some: got.extend(some.trials))
        except StateError as error:
            return got, said, made, error
    return got, said, made, None


def test_all_trials_are_received_once():
    got, said, made, error = run(Ray(Worker))
    assert sorted(got) == sorted((f"p{n}", 0) for n in range(20)) and error is None
    assert made.tally.lost is None and said == ["starting 2 workers, each with a CPU"]


def test_what_a_dead_worker_left_is_run_by_another_and_counted():
    ray = Ray(lambda n: Worker(n, life=3 if n == 0 else 10**9))
    got, said, made, error = run(ray)
    assert sorted(got) == sorted((f"p{n}", 0) for n in range(20)) and error is None
    assert made.tally.lost.workers == 1 and made.tally.lost.attempts == 2
    assert "worker 0 on node has died (Died: the worker was killed)" in said[1] and "attempt 2" in said[1]
    assert not made.hands and len(ray.killed) == 3


def test_a_trial_that_kills_every_worker_ends_the_run_after_all_others():
    got, said, made, error = run(Ray(lambda n: Worker(n, poison={("p7", 0)})))
    assert sorted(got) == sorted((f"p{n}", 0) for n in range(20) if n != 7)
    assert "1 trials could not be run" in str(error) and "arm p7/0" in str(error)
    assert made.tally.lost.workers >= 3


def test_a_lost_device_is_a_lost_worker_and_any_other_fault_ends_the_run():
    class Lame(Worker):
        def work(self, block):
            if self.number == 0:
                yield Broken("CUDA error", "", device=True)
            else:
                yield from super().work(block)

    got, said, made, error = run(Ray(Lame))
    assert len(got) == 20 and made.tally.lost.workers == 1 and "CUDA error" in said[1]

    class Wrong(Worker):
        def work(self, block):
            yield Broken("MeterMismatch: 3, 4", "the traceback", device=False)

    with pytest.raises(RuntimeError, match="the traceback"):
        run(Ray(Wrong))


def test_a_worker_with_other_code_stops_the_run_before_it_begins():
    refused = Refused("DriftError", "locked.methods.alpha was 1, is 2", Ready("other", 7))
    ray = Ray(lambda n: Worker(n, answer=refused if n else None))
    with pytest.raises(DriftError, match="worker 7 on other: locked.methods.alpha was 1, is 2"):
        run(ray)
    assert len(ray.killed) == 2


def test_a_worker_that_comes_later_with_other_code_is_left_out():
    refused = Refused("DriftError", "locked.methods.alpha was 1, is 2", Ready("other", 7))
    ray = Ray(lambda n: Worker(n, life=2 if n == 0 else 10**9, answer=refused if n > 1 else None))
    got, said, made, error = run(ray, trials=60)
    assert len(got) == 60 and error is None
    assert "worker 7 on other is left out: locked.methods.alpha was 1, is 2" in said
    assert next(ray.numbers) == 3  # nobody else is started in its place


def test_nobody_waits_for_workers_that_will_not_run_anything():
    refused = Refused("DriftError", "locked.methods.alpha was 1, is 2", Ready("other", 7))
    ray = Ray(lambda n: Worker(n, life=2, answer=refused if n else None), nodes=({"CPU": 1.0},))
    with pytest.raises(DriftError, match="no worker is left but those that differ; worker 7 on other: locked"):
        run(ray, trials=60)


def test_workers_in_different_environments_are_refused():
    other = HERE.model_copy(update={"packages": {"torch": "3"}})
    with pytest.raises(DriftError, match="worker 1 on b: its environment .* worker 0 on a: torch is 3, not 2"):
        run(Ray(lambda n: Worker(n, answer=Ready("b" if n else "a", n, other if n else HERE))))


def test_workers_that_die_before_they_are_ready_end_the_run():
    class Stillborn(Worker):
        def ready(self):
            raise Died("out of memory")

    with pytest.raises(StateError, match="die before they are ready: .*out of memory"):
        run(Ray(Stillborn))


def test_a_deserted_cluster_ends_the_run(monkeypatch):
    class Leaving(Worker):
        def work(self, block):
            ray.resources.clear()
            raise Died("node died")
            yield

    monkeypatch.setattr(crews, "DESERTED", 0.05)
    ray = Ray(Leaving)
    got, said, made, error = run(ray)
    assert got == [] and "the cluster has room for 0" in str(error)


def test_new_nodes_get_workers():
    class Slow(Worker):
        def work(self, block):
            ray.resources[:] = [{"CPU": 4.0}]
            yield from super().work(block)

    ray = Ray(Slow)
    run(ray, trials=40)
    assert next(ray.numbers) == 4
