"""A process that has loaded torch and the model once and forks a child for each command line, so that a command costs
what it does and not what importing does. It has one thread, so forking it is sound. It is talked to in JSON lines:

{"args": [...], "folder": ..., "faults": {...} or null, "gate": path or null} → {"pid": ...}
{"wait": pid, "seconds": ...} → {"status": exit code, −signal, or null when it still runs}
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    import torch

    torch.set_num_threads(1)
    warm()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"status": wait(**request)} if "wait" in request else {"pid": start(**request)}
        print(json.dumps(answer), flush=True)


def warm() -> None:
    """Import what the commands import, and load the model where they look for it."""
    import importlib

    from cask_eval import cli
    from cask_eval.cli.common import quiet
    from cask_eval.protocol.model import Model
    from cask_eval.runner import models
    from cask_eval.workspace import Workspace

    quiet()
    for name in cli.COMMANDS:
        importlib.import_module(f"cask_eval.cli.{name}")
    for name in ("decide.derive", "runner.steps", "report.html", "report.markdown", "report.text", "verify.run"):
        importlib.import_module(f"cask_eval.{name}")
    model = Model(id="embedded:chain-s", name="chain-s", dtype="float32", calibration="bundled")
    models.loaded(model, Workspace("/"), "cpu")


def start(args: list[str], folder: str, faults: dict | None, gate: str | None) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = child(args, Path(folder), faults, gate)
    finally:
        os._exit(code)


def child(args: list[str], folder: Path, faults: dict | None, gate: str | None) -> int:
    from faults import Faults, journal

    from cask_eval.cli import main as command

    for fd, name, flags in ((0, os.devnull, os.O_RDONLY), (1, folder / "stdout", W), (2, folder / "stderr", W)):
        opened = os.open(name, flags, 0o644)
        os.dup2(opened, fd)
        os.close(opened)
    # What starts in the background is started deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
    journal(folder / "finished")
    points = Faults(**faults) if faults else None
    if points:
        points.install()
    while gate and not os.path.exists(gate):
        time.sleep(0.0005)
    sys.argv = ["cask-eval", *args]
    try:
        command()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if points:
        points.at, points.refuse = 0, False
        (folder / "points").write_text("\n".join(points.names))
    return code


W = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def wait(wait: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(wait, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.001)


if __name__ == "__main__":
    main()
