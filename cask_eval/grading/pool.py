"""Worker processes behind one queue: any thread may ask, and a process that was forked gets workers of its own.

No signal is used in this process, no thread outlives a request, and nothing depends on how the program was started: a
worker is a plain subprocess with two pipes. A request that passes its deadline costs its worker's life.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import Any

__all__ = ["Limits", "Pool", "Reply"]


@dataclass(frozen=True)
class Limits:
    """What one answer may cost. `cpu` seconds of processor time, so that a busy machine changes no verdict; `wall`
    seconds at most all the same; `memory` bytes of address space; `requests` until a worker is replaced."""

    cpu: float = 5.0
    wall: float = 60.0
    memory: int = 2 << 30
    requests: int = 500


@dataclass(frozen=True)
class Reply:
    """`value` is what the worker said; `failure` why it said nothing."""

    value: dict[str, Any] | None
    failure: str = ""


_START = "import os, sys; sys.path[:] = sys.argv.pop().split(os.pathsep); "
_START += "from cask_eval.grading.worker import main; main()"
# A worker's results may depend on none of these. gmpy2 is kept out: its big numbers heed no limit.
_SETTINGS = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "MPMATH_NOGMPY": "1"}
_SETTINGS |= {"SYMPY_GROUND_TYPES": "python", "SYMPY_USE_CACHE": "yes", "PYTHONUTF8": "1"}


class _Worker:
    def __init__(self, limits: Limits):
        self.limits, self.served = limits, 0
        keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "TEMP", "TMP", "VIRTUAL_ENV")
        environment = {k: os.environ[k] for k in keep if k in os.environ} | _SETTINGS
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(limits.memory), str(limits.cpu), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=os.name == "posix",
        )

    def ask(self, request: dict[str, Any]) -> Reply:
        self.served += 1
        line = json.dumps({**request, "id": self.served}).encode("ascii") + b"\n"
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(self.limits.wall, stop)
        timer.daemon = True
        timer.start()
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = b""
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()
        if not answer.endswith(b"\n"):
            try:
                code = self.process.wait(2)
            except subprocess.TimeoutExpired:
                code = None
            self.close()
            return Reply(None, "deadline" if late.is_set() else _cause(code))
        value = json.loads(answer)
        if value.pop("id") != self.served:
            self.close()
            return Reply(None, "out of step")
        if "failure" in value:
            self.close()
            return Reply(None, value["failure"])
        if late.is_set():
            # The answer came in time, if only just; the worker is gone.
            self.process.wait()
        return Reply(value)

    @property
    def usable(self) -> bool:
        return self.process.poll() is None and self.served < self.limits.requests

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.drop()

    def drop(self) -> None:
        """Closes our ends of the pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                pass


def _cause(code: int | None) -> str:
    """What a worker died of."""
    import signal

    if code is not None and code < 0 and -code in (getattr(signal, n, 0) for n in ("SIGPROF", "SIGXCPU", "SIGVTALRM")):
        return "time"
    return "died"


class Pool:
    """Up to `size` workers, started when they are needed. `ask` may be called from any thread."""

    def __init__(self, size: int, limits: Limits):
        if size < 1:
            raise ValueError(f"a pool of {size} workers grades nothing; give 1 or more")
        self.size, self.limits = size, limits
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.size):
            self._idle.put(None)
        self._closed = False

    def ask(self, request: dict[str, Any]) -> Reply:
        if self._closed:
            raise ValueError("the grader is closed")
        idle = self._idle
        worker = idle.get()
        try:
            if worker is not None and not worker.usable:
                worker.close()
                worker = None
            if worker is None:
                worker = _Worker(self.limits)
            reply = worker.ask(request)
            if reply.failure:
                worker = None
            return reply
        except BaseException:
            if worker is not None:
                worker.close()
            worker = None
            raise
        finally:
            if self._closed and worker is not None:
                worker.close()
                worker = None
            idle.put(worker)

    def close(self) -> None:
        """Ends the workers that are idle; those at work end with their request."""
        self._closed = True
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                return
            if worker is not None:
                worker.close()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forked() -> None:
    """In a child: the workers belong to the parent, and locks may have been held by threads that are not here."""
    for pool in list(_pools):
        closed = pool._closed
        for worker in list(pool._idle.queue):
            if worker is not None:
                worker.drop()
                worker.process.returncode = 0  # not ours to wait for
        pool._reset()
        pool._closed = closed


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
