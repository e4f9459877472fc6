"""Trials that break, memory that runs out, runs that are interrupted: nothing is lost, blamed wrongly or saved twice."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from cask_eval.engine.decode import MeterMismatch, Request
from cask_eval.runner import trials
from cask_eval.runner.trials import Bench


class Cache:
    """What a running `generate` holds, and the traceback of an error in it would keep alive."""


class Engine:
    """Stands in for `generate`: finishes requests in order, `slots` at a time, and breaks at the keys in `bad`."""

    def __init__(self, bad, error, most_slots=64):
        self.bad, self.error, self.most_slots, self.calls, self.caches = set(bad), error, most_slots, [], []

    def __call__(self, model, requests, policy, schedule, sampling, *, slots, usage=None):
        self.calls.append((len(requests), slots))
        cache = Cache()
        self.caches.append(weakref.ref(cache))
        if slots > self.most_slots:
            raise torch.OutOfMemoryError("too many slots")
        for start in range(0, len(requests), slots):
            wave = requests[start : start + slots]
            if self.bad & {r.key for r in wave}:
                raise self.error
            yield from (SimpleNamespace(key=r.key) for r in wave)


def outcomes(monkeypatch, engine, slots=8, n=20):
    monkeypatch.setattr(trials, "generate", engine)
    bench = Bench(None, "", "", "cpu", slots)
    return list(bench._outcomes(None, [Request(i, (1,), i) for i in range(n)], None, 1, None, bench.slots))


@pytest.mark.parametrize(
    "error, kind",
    [
        (FloatingPointError("NaN"), "method"),
        (IndexError("a method's own fault"), "method"),
        (TypeError("a method's own fault"), "method"),
        (torch.OutOfMemoryError("full"), "infrastructure"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "infrastructure"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "infrastructure"),
    ],
)
def test_only_the_trials_at_fault_fail(monkeypatch, error, kind):
    engine = Engine({3, 11}, error)
    out = outcomes(monkeypatch, engine)
    assert sorted(o.key for o in out) == list(range(20))
    faults = {o.key: (o.kind, o.error) for o in out if isinstance(o, trials._Fault)}
    assert faults == {3: (kind, type(error).__name__), 11: (kind, type(error).__name__)}
    assert len(engine.calls) < 25


def test_fewer_slots_are_tried_before_anything_is_blamed(monkeypatch):
    engine = Engine((), None, most_slots=2)
    out = outcomes(monkeypatch, engine)
    assert [o.key for o in out] == list(range(20))
    assert [slots for _, slots in engine.calls] == [8, 4, 2]


@pytest.mark.parametrize(
    "error", [MeterMismatch("account"), RuntimeError("CUDA error: an illegal memory access"), KeyboardInterrupt()]
)
def test_what_says_nothing_about_a_trial_stops_the_run(monkeypatch, error):
    with pytest.raises(type(error)):
        outcomes(monkeypatch, Engine({3}, error))


def test_a_broken_run_frees_its_memory_before_the_next_one_starts(monkeypatch):
    class Watching(Engine):
        def __call__(self, *args, **kwargs):
            gc.collect()
            alive.append(sum(c() is not None for c in self.caches))
            return super().__call__(*args, **kwargs)

        # A new error each time, as torch raises them.
        error = property(lambda self: torch.OutOfMemoryError("full"), lambda self, value: None)

    alive = []
    out = outcomes(monkeypatch, Watching(range(20), None))
    assert all(isinstance(o, trials._Fault) for o in out) and set(alive) == {0}


def test_records_are_not_saved_twice_when_an_interrupt_meets_the_save(registered, copy, monkeypatch):
    """The interrupt arrives after the lines are on disk, before `save` returns."""
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState
    from cask_eval.runner import tune
    from cask_eval.runner.place import Here
    from cask_eval.runner.steps import _reopen
    from cask_eval.workspace import Workspace

    workspace = Workspace(copy(registered))
    event, lock = StudyState.of(Ledger(workspace.ledger).events(), "small").register
    study = _reopen(workspace, lock, Here("cpu"))
    cell = study.protocol.cells[0]
    # Many trials from few problems: 40 samples of the first.
    few = type(study.dev)(study.dev.path, study.dev.manifest, study.dev.problems[:1])
    generation = study.protocol.generation.model_copy(update={"samples": 40, "max_new_tokens": 4})
    protocol = study.protocol.model_copy(update={"generation": generation})
    study = type(study)(study.workspace, SimpleNamespace(protocol=protocol), study.task, few, study.heldout)
    written = []

    def save(records):
        written.extend(r.key for r in records)
        raise KeyboardInterrupt

    ground = tune.grounds(study, lock.models, "cpu")[cell.model]
    batch = trials.Batch("dev", cell, "baseline", "", tune.baseline(protocol, cell, ground))
    with pytest.raises(KeyboardInterrupt):
        Bench(study, event.hash, event.hash, "cpu").run(batch, set(), save, lambda *_: None)
    assert written and len(written) == len(set(written))


def test_a_small_model_does_not_slow_a_later_one_down(monkeypatch):
    from cask_eval.runner import models

    sizes = {"small": 1, "large": models.SMALL}
    monkeypatch.setattr(models, "_held", {})
    monkeypatch.setattr(models, "_THREADS", 2)
    monkeypatch.setattr(models, "located", lambda model, workspace: model.id)
    held = []

    def load(source, **_):
        held.append(len(models._held))
        return SimpleNamespace(num_parameters=lambda: sizes[source]), None

    monkeypatch.setattr(models, "load_model", load)
    before = torch.get_num_threads()
    try:
        for name, threads in (("small", 1), ("large", 2), ("small", 1)):
            models.loaded(SimpleNamespace(id=name, dtype="float32"), None, "cpu")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert held == [0, 0, 0]  # never two models in memory
