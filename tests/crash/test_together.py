"""Several processes at once: one does the work, the others end with a clear error, nothing is doubled."""

import json
import os
import random
import time
from collections import Counter
from multiprocessing import get_context

import pytest
from click.testing import CliRunner
from crashes import STUDY, append_events, append_records, check, check_same, check_verdict, fake_anchor
from faults import Faults

from cask_eval.ledger.log import Ledger, audit
from cask_eval.records.store import RecordStore

BUSY = "another process is writing these records; wait for it to end"
BEHIND = (
    "another process is writing",
    "tuned already",
    "is tuned, not registered",
    "consumed its held-out split",
    "is closed",
    "its one attempt",
)


def at_once(server, folder, *commands, apart: float = 0):
    """The commands, released at the same moment or a little apart, each in its own process."""
    gates = [folder / f"gate{time.monotonic_ns()}{i}" for i in range(len(commands))]
    running = [server.start(*command, gate=gate) for command, gate in zip(commands, gates)]
    time.sleep(0.1)
    for gate in gates:
        gate.touch()
        time.sleep(apart)
    return [each.wait() for each in running]


def one_won(dones, codes=(2, 4)) -> None:
    assert sorted(done.status for done in dones)[0] == 0
    for done in dones:
        if done.status:
            assert done.status in codes and "Traceback" not in done.err, done.err
            said = [line for line in done.err.splitlines() if line.startswith("error:")]
            assert len(said) == 1 and any(word in said[0] for word in BEHIND), done.err


@pytest.mark.parametrize("apart", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.3, 0.7, 1.1, 1.6))])
@pytest.mark.parametrize("command", ["confirm", pytest.param("tune", marks=pytest.mark.slow)])
def test_the_same_step_twice(command, apart, registered, tuned, closed, copy, server, tmp_path):
    place = copy({"tune": registered, "confirm": tuned}[command])
    before = place.complete()
    dones = at_once(server, tmp_path, *[place.command(command)] * 2, apart=apart)
    check(place, before)
    one_won(dones)
    if command == "tune":
        assert server(*place.command("confirm")).status == 0
    check_same(place, closed, server)


def test_one_study_registered_by_three(fresh, copy, server, tmp_path):
    place = copy(fresh)
    dones = at_once(server, tmp_path, *[place.command("register")] * 3)
    assert sorted(done.status for done in dones) == [0, 2, 2]
    assert all("is registered already" in done.err for done in dones if done.status)
    assert len(place.complete()["prereg/ledger.jsonl"]) == 1


@pytest.mark.slow
def test_studies_registered_while_another_runs(tuned, closed, copy, server):
    place = copy(tuned)
    others = [f"other-{i}" for i in range(4)]
    for name in others:
        place.edit({f"study: {STUDY}": f"study: {name}"}, name)
    commands = [["register", str(place.root / "prereg" / f"{name}.yaml"), "--device", "cpu"] for name in others]
    running = [server.start(*command) for command in (place.command("confirm"), *commands)]
    for done in (each.wait() for each in running):
        assert done.status == 0, done.err
    events = Ledger(place.ledger).events()
    assert Counter(e.study for e in events if e.event == "register") == Counter([STUDY, *others])
    check(place, tuned.complete())
    check_same(place, closed, server)


def test_time_stamps_while_the_study_runs(tuned, copy, server):
    """Other writers of the ledger, as `anchor` is one: the chain stays whole, every event is there."""
    place = copy(tuned)
    with get_context("spawn").Pool(2) as pool:
        running = server.start(*place.command("confirm"))
        made = pool.starmap(append_events, [(str(place.ledger), f"writer-{i}", 20) for i in range(4)])
        assert running.wait().status == 0
    events, faults = audit(place.complete()["prereg/ledger.jsonl"])
    assert not faults and {e.hash for e in events} >= {h for hashes in made for h in hashes}
    check(place, tuned.complete())
    check_verdict(place, server)


def test_packing_while_others_verify(closed, copy, server, tmp_path):
    place = copy(closed)
    verify = ["-C", str(place.root), "verify", STUDY, "--require", "L0"]
    for _ in range(3):
        dones = at_once(server, tmp_path, place.command("pack"), place.command("pack"), verify, verify)
        for done in dones[:2]:
            assert done.status == 0 or done.status == 2 and BUSY in done.err, done.err
        assert any(done.status == 0 for done in dones[:2])
        for done in dones[2:]:
            assert done.status == 0 or done.status == 1 and "one of them must go" in done.out, done.out
    assert sorted(p.name for p in place.reports.glob("*.jsonl*") if p.suffix != ".lock") == [
        "dev.jsonl.gz",
        "heldout.jsonl.gz",
    ]
    check_verdict(place, server)


# --- a process that had looked at the ledger before another one went on


def test_a_run_that_went_on_meanwhile(tuned, closed, copy, server, monkeypatch, cask_here):
    """Sessions are counted from what the ledger says once the records are held, not from what it said before."""
    place = copy(tuned)
    assert server(*place.command("confirm"), faults=Faults(str(place.root), 20, "kill")).status == -9
    points = server(*(twin := copy(place, "twin")).command("confirm"), faults=Faults(str(twin.root))).points
    at = points.index("write ledger.jsonl") + 1

    def meanwhile():
        assert server(*place.command("confirm"), faults=Faults(str(place.root), at, "after")).status == -9
        assert [payload.complete for _, payload in place.state.sessions] == [False]

    cask_here(place, "confirm", meanwhile)
    assert [payload.session for _, payload in place.state.sessions] == [1, 2, 3]
    check_same(place, closed, server)


@pytest.mark.parametrize("command", ["tune", "confirm"])
def test_a_run_that_ended_meanwhile(command, registered, tuned, copy, server, cask_here):
    place = copy({"tune": registered, "confirm": tuned}[command])
    error = cask_here(place, command, lambda: server(*place.command(command)))
    assert any(word in str(error) for word in BEHIND), error
    before = place.complete()
    check(place, before)


@pytest.fixture
def cask_here(monkeypatch):
    """cask_here(place, command, meanwhile): run a command in this process, and `meanwhile` when it has looked at the
    ledger and holds nothing yet. Returns the error that it raises."""
    from cask_eval.cli import cli
    from cask_eval.errors import CaskError
    from cask_eval.runner import steps

    inner = steps._reopen

    def run(place, command, meanwhile):
        todo = [meanwhile]

        def reopen(*args):
            study = inner(*args)
            if todo:
                todo.pop()()
            return study

        monkeypatch.setattr(steps, "_reopen", reopen)
        result = CliRunner().invoke(cli, place.command(command), standalone_mode=False)
        if result.exception and not isinstance(result.exception, CaskError):
            raise result.exception
        return result.exception

    return run


# --- many writers


@pytest.mark.parametrize("writers, each", [(4, 10), pytest.param(8, 100, marks=pytest.mark.slow)])
def test_many_writers_of_one_ledger(writers, each, tmp_path):
    path = tmp_path / "ledger.jsonl"
    with get_context("spawn").Pool(writers) as pool:
        made = pool.starmap(append_events, [(str(path), f"writer-{i}", each) for i in range(writers)])
    events = Ledger(path).events()
    assert [e.hash for e in events if e.study == "writer-0"] == made[0]
    assert {e.hash for e in events} == {h for hashes in made for h in hashes}
    assert len(events) == writers * each and [e.seq for e in events] == list(range(len(events)))
    times = [e.time for e in events]
    assert times == sorted(times)


@pytest.mark.parametrize("writers", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_many_writers_of_one_records_file(writers, closed, tmp_path):
    """Each tries to add every record; together they add each once."""
    lines = closed.store("heldout").path.read_text().splitlines()
    path = tmp_path / "records.jsonl"
    with get_context("spawn").Pool(writers) as pool:
        jobs = [(str(path), random.Random(i).sample(lines, len(lines))) for i in range(writers)]
        added = pool.starmap(append_records, jobs)
    keys = [r.key for r in RecordStore(path).read()]
    assert sorted(path.read_text().splitlines()) == sorted(lines)
    assert sum(added) == len(keys) == len(set(keys)) == len(lines)


def test_writers_that_die_in_the_middle_of_a_line(tmp_path):
    """Every other writer leaves half an event behind; the next one sets it aside."""
    path, context = tmp_path / "ledger.jsonl", get_context("spawn")
    for i in range(4):
        faults = {"root": str(tmp_path), "at": 1, "only": "write ledger.jsonl", "do": "kill", "share": 0.1 + 0.25 * i}
        dying = context.Process(target=append_events, args=(str(path), f"dying-{i}", 1, faults))
        living = context.Process(target=append_events, args=(str(path), f"living-{i}", 2))
        for process in (dying, living):
            process.start()
        for process in (dying, living):
            process.join(60)
        assert (dying.exitcode, living.exitcode) == (-9, 0)
    events = Ledger(path).events()
    assert Counter(e.study for e in events) == {f"living-{i}": 2 for i in range(4)}
    assert json.loads(path.read_bytes().splitlines()[0])["seq"] == 0 and os.path.exists(f"{path}.torn")
    assert events[0].payload == fake_anchor(0).model_dump(mode="json")
