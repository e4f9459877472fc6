"""Ctrl-C and SIGTERM: finished trials are kept, the exit code says what happened, the message says how to go on."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from crashes import STUDY, check, check_finished, check_same
from faults import Faults

ENDS = {"interrupt": (signal.SIGINT, 130, "interrupted"), "terminate": (signal.SIGTERM, 143, "terminated")}


def hearing() -> None:
    """What starts in the background is started deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def told(done, code: int, word: str) -> None:
    assert done.status == code, (done.status, done.err)
    assert f"{word}; finished trials are kept, `cask-eval status` says how to go on" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("step", [90, pytest.param(5, marks=pytest.mark.slow)])
def test_a_signal_at_a_write(how, step, tuned, closed, copy, server):
    _, code, word = ENDS[how]
    count = copy(tuned, "count")
    points = server(*count.command("confirm"), faults=Faults(str(count.root))).points
    for at in range(8, len(points), step):
        place = copy(tuned, f"at{at}")
        before = place.complete()
        done = server(*place.command("confirm"), faults=Faults(str(place.root), at, how))
        told(done, code, word)
        check(place, before)
        check_finished(place, done.finished)
        while following := place.step():
            assert server(*place.command(following)).status == 0
        check_same(place, closed, server)


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_signals_at_any_time_again_and_again(how, tuned, closed, copy, server):
    number, code, word = ENDS[how]
    rng, place, met = random.Random(5), copy(tuned), 0
    for _ in range(40):
        if not (following := place.step()):
            break
        before = place.complete()
        started = server.start(*place.command(following))
        started.until(rng.randint(1, 4))
        time.sleep(rng.uniform(0, 0.05))
        started.kill(number)
        done = started.wait()
        if done.status:
            told(done, code, word)
            met += 1
        check(place, before)
        check_finished(place, done.finished)
    assert met >= 2
    check_same(place, closed, server)


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_a_process_of_its_own(how, tuned, closed, copy, server):
    """With the interpreter's own start and end around it."""
    number, code, word = ENDS[how]
    place = copy(tuned)
    args = [sys.executable, "-m", "cask_eval", *place.command("confirm")]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=hearing)
    path, end = place.store("heldout").path, time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and f"{word}; finished trials are kept" in err.splitlines()[-1], err
    assert not out and place.keys()
    (row,) = [line for line in server("-C", place.root, "status", STUDY).out.splitlines() if "next:" in line]
    assert row.endswith(f"confirm {STUDY} --split heldout")
    assert subprocess.run(args, capture_output=True).returncode == 0
    check_same(place, closed, server)
