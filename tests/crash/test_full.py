"""A full disk: one clear line, exit code 2, nothing finished is lost, and the run goes on when there is room."""

import os
import subprocess

import pytest
from crashes import Workplace, check, check_finished, check_same, check_verdict
from faults import Faults

# Full from there on, or for one moment only, after which the same process could write again.
MODES = ["full", "hiccup"]


def test_each_point_of_registering(fresh, copy, server):
    for do in MODES:
        for _, place in broken(server, fresh, "register", do, copy):
            if place.step() == "register":
                assert not place.complete()["prereg/ledger.jsonl"]
                assert server(*place.command("register")).status == 0
            assert len(place.complete()["prereg/ledger.jsonl"]) == 1


@pytest.mark.parametrize(
    "command, do, step",
    [
        ("confirm", "full", 29),
        *(pytest.param(c, do, 4, marks=pytest.mark.slow) for c in ("tune", "confirm") for do in MODES),
    ],
)
def test_each_point_of_a_run(command, do, step, registered, tuned, closed, copy, server):
    start = {"tune": registered, "confirm": tuned}[command]
    for _, place in broken(server, start, command, do, copy, step):
        while following := place.step():
            before = place.complete()
            done = server(*place.command(following))
            assert done.status == 0, done.err
            check(place, before)
        check_same(place, closed, server)


@pytest.mark.parametrize("do", ["full", pytest.param("hiccup", marks=pytest.mark.slow)])
def test_each_point_of_packing(do, closed, copy, server):
    for _, place in broken(server, closed, "pack", do, copy):
        again = server(*place.command("pack"))
        assert again.status == 0, again.err
        assert not list(place.reports.glob("*.jsonl")) and not list(place.reports.glob("*.new"))
        check_verdict(place, server)


def broken(server, start, command, do, copy, step=1):
    """(point, workspace) after a command that met a full disk there, for every `step`-th point."""
    counted = server(*(place := copy(start, f"count-{do}")).command(command), faults=Faults(str(place.root)))
    assert counted.status == 0
    met = 0
    for at in range(1, len(counted.points) + 1, step):
        place = copy(start, f"{do}{at}")
        before = place.complete()
        done = server(*place.command(command), faults=Faults(str(place.root), at, do))
        check(place, before)
        check_finished(place, done.finished)
        if done.status == 0:  # nothing that needs room follows this point
            assert "Error" not in done.err
            continue
        met += 1
        said = [line for line in done.err.splitlines() if line.startswith("error:")]
        assert done.status == 2 and "Traceback" not in done.err, done.err
        assert len(said) == 1 and done.err.rstrip().endswith(said[0])
        assert "No space left on device; check that the path is right, writable and not full" in said[0]
        assert str(place.root) in said[0], "it names the file"
        assert not done.out or command == "pack"
        yield at, place
    assert met


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", point], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"file systems cannot be mounted here: {made.stderr.strip()}")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


def test_a_real_disk_that_is_full(small_disk, tuned, closed, server):
    import shutil

    place = Workplace(shutil.copytree(tuned.root, small_disk / "ws"))
    filler = small_disk / "filler"
    for left in (0, 8192, 30_000):
        fill(filler, small_disk, left)
        before = place.complete()
        done = server(*place.command("confirm"))
        assert done.status == 2 and "Traceback" not in done.err, done.err
        assert "No space left on device; check that the path is right" in done.err.splitlines()[-1]
        check(place, before)
        check_finished(place, done.finished)
        filler.unlink()
    assert place.state.name == "consumed" and place.keys()
    for name in ("confirm", "report"):
        done = server(*place.command(name))
        assert done.status == 0, done.err
    check_same(place, closed, server)


def fill(filler, disk, left: int) -> None:
    room = os.statvfs(disk)
    with open(filler, "wb") as f:
        f.write(bytes(max(0, room.f_bavail * room.f_frsize - left)))
