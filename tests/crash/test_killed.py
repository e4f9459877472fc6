"""kill −9 at any moment between registration and the packed study, and the commands started again until they end."""

import gzip
import random
import signal
import time

import pytest
from crashes import STUDY, check, check_finished, check_same, check_verdict
from faults import Faults


def drive(place, server, run, rng) -> int:
    """Bring the study to its packed end, each command through `run`, which may kill it. Returns the number of kills."""
    kills, tail = 0, ["report", "pack"]
    for _ in range(400):
        step = place.step() or (tail[0] if tail else None)
        if step is None:
            return kills
        if step == "analyze":
            step = rng.choice(["analyze", "confirm"])
        before = place.complete()
        done = run(place.command(step))
        if step != "pack":
            check(place, before)
            check_finished(place, done.finished)
        assert done.status in (0, -signal.SIGKILL), done.err
        if done.status == 0 and step in tail:
            tail.pop(0)
        kills += done.status != 0
    raise AssertionError("the study does not come to its end")


def at_points(place, server, rng, reach=(4, 12, 24)):
    """Kills in front of, in the middle of, or right after one of the next points where a file is touched."""

    def run(command):
        at = rng.randint(1, rng.choice(reach))
        return server(*command, faults=Faults(str(place.root), at, rng.choice(["kill", "after"]), rng.random()))

    return run


def at_times(place, server, rng):
    """Kills after a random time, whatever the process is at; a command that never gets far enough is given longer."""
    patience = 1.0

    def run(command):
        nonlocal patience
        started = server.start(*command)
        time.sleep(rng.uniform(0.01, patience))
        try:
            started.kill(signal.SIGKILL)
        except ProcessLookupError:
            pass
        done = started.wait()
        patience = 1.0 if done.status == 0 else 1.1 * patience
        return done

    return run


def test_a_study_killed_again_and_again_comes_to_the_same_end(registered, closed, copy, server):
    rng, place = random.Random(1), copy(registered)
    assert drive(place, server, at_points(place, server, rng, (20, 40)), rng) >= 5
    check_same(place, closed, server)


@pytest.mark.slow
@pytest.mark.parametrize("how", [at_points, at_times])
def test_fifty_kills(how, fresh, copy, server):
    """From the registration on; what it comes to is compared with a copy that ran through after registering."""
    rng, kills, studies = random.Random(2), 0, 0
    while kills < 50:
        studies += 1
        assert studies <= 12
        place = copy(fresh, f"broken{studies}")
        run = how(place, server, rng)
        while place.step() == "register":
            done = run(place.command("register"))
            check(place, {})
            kills += done.status == -signal.SIGKILL
        whole = copy(place, f"whole{studies}")
        for step in ("tune", "confirm"):
            assert server(*whole.command(step)).status == 0
        kills += drive(place, server, run, rng)
        check_same(place, whole, server)
    print(f"{kills} kills, {studies} studies")


# --- every point, one after the other


def points_of(server, place, command, only=lambda name: True) -> list[int]:
    """The points of a command that nothing stops, on a copy of `place` that is used up."""
    done = server(*place.command(command), faults=Faults(str(place.root)))
    assert done.status == 0, done.err
    return [number for number, name in enumerate(done.points, 1) if only(name)]


def killed_at(place, server, command, at, do) -> None:
    before = place.complete()
    done = server(*place.command(command), faults=Faults(str(place.root), at, do))
    assert done.status == -signal.SIGKILL
    check(place, before)
    check_finished(place, done.finished)


def finish(place, server) -> None:
    while step := place.step():
        before = place.complete()
        done = server(*place.command(step))
        assert done.status == 0, done.err
        check(place, before)


WRITES = ("write ledger.jsonl", "fsync ledger.jsonl", "create dev.jsonl", "create heldout.jsonl")


@pytest.mark.parametrize(
    "command, some",
    [
        ("register", lambda name: "lock" not in name),
        pytest.param("tune", lambda name: name in WRITES, marks=pytest.mark.slow),
        pytest.param("confirm", lambda name: name in WRITES or "analysis" in name, marks=pytest.mark.slow),
    ],
)
def test_killed_around_each_event(command, some, fresh, registered, tuned, closed, copy, server):
    start = {"register": fresh, "tune": registered, "confirm": tuned}[command]
    for at in points_of(server, copy(start, "count"), command, some):
        place = copy(start, f"at{at}")
        killed_at(place, server, command, at, "kill")
        if command == "register":
            while place.step() == "register":
                assert server(*place.command("register")).status == 0
            assert len(place.complete()["prereg/ledger.jsonl"]) == 1
        else:
            finish(place, server)
            check_same(place, closed, server)


@pytest.mark.slow
@pytest.mark.parametrize("command, do", [("tune", "after"), ("confirm", "kill")])
def test_killed_at_every_second_point(command, do, registered, tuned, closed, copy, server):
    start = {"tune": registered, "confirm": tuned}[command]
    for at in points_of(server, copy(start, "count"), command)[::2]:
        place = copy(start, f"at{at}")
        killed_at(place, server, command, at, do)
        finish(place, server)
        check_same(place, closed, server)


@pytest.mark.slow
def test_the_report_killed_halfway_is_the_old_one_or_the_new_one(closed, copy, server):
    for at in points_of(server, copy(closed, "count"), "report"):
        place = copy(closed, f"at{at}")
        before = {name: (place.reports / name).read_bytes() for name in ("report.html", "report.md", "analysis.json")}
        killed_at(place, server, "report", at, "kill")
        assert {name: (place.reports / name).read_bytes() for name in before} == before
    check_verdict(place, server)


# --- pack


@pytest.mark.parametrize("do", ["kill", pytest.param("after", marks=pytest.mark.slow)])
def test_pack_killed_at_each_point_is_finished_by_the_next_one(do, closed, copy, server):
    plain = {phase: closed.store(phase).path.read_bytes() for phase in ("dev", "heldout")}
    both = 0
    for at in points_of(server, copy(closed, "count"), "pack"):
        place = copy(closed, f"at{at}")
        done = server(*place.command("pack"), faults=Faults(str(place.root), at, do))
        assert done.status == -signal.SIGKILL
        halfway = [p for p in plain if place.store(p).path.exists() and packed(place, p).exists()]
        both += bool(halfway)
        verdict = server("-C", place.root, "verify", STUDY, "--require", "L0")
        assert verdict.status == (1 if halfway else 0)
        if halfway:
            assert "`cask-eval pack`" in server("-C", place.root, "analyze", STUDY).err or halfway == ["dev"]
        again = server(*place.command("pack"))
        assert again.status == 0, again.err
        for phase, content in plain.items():
            assert not place.store(phase).path.exists()
            assert gzip.decompress(packed(place, phase).read_bytes()) == content
        check_verdict(place, server)
    assert both >= 2


def packed(place, phase):
    return place.store(phase).path.with_name(f"{phase}.jsonl.gz")
