"""A child process that decides one answer after another: started by `cask_eval.grading.pool`, and by nothing else.

It reads one JSON request a line and writes one JSON reply a line. Its memory is limited for its whole life and its
processor time for each request; when a limit is passed it dies, and its parent records a failure and starts another.
It writes no files, and whatever a library prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import select
import sys

__all__ = ["main"]


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's deadline is the only limit there.
        return
    for what, most in (("RLIMIT_AS", memory), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0)):
        try:
            resource.setrlimit(getattr(resource, what), (most, most))
        except (ValueError, OSError):
            pass


def _arm(seconds: float) -> None:
    """Die of SIGPROF after so many seconds of processor time (0: never)."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(request: dict, cpu: float) -> dict:
    from cask_eval.grading import cascade, symbolic

    if request["do"] == "plain":
        symbolic.load()
        _arm(cpu)
        return {"plain": symbolic.plain(request["gold"], request["answer"])}
    _arm(cpu)
    found = cascade.exact(request["gold"], request["answer"], request["integers"])
    if found is None:
        _arm(0)
        symbolic.load()
        _arm(cpu)
        found = cascade.last(request["gold"], request["answer"])
    return found._asdict()


def main() -> None:
    memory, cpu = int(sys.argv[1]), float(sys.argv[2])
    _limit(memory)
    sys.setrecursionlimit(2_000)
    out = os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    parent = os.getppid()
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    pending = b""
    while True:
        while b"\n" not in pending:
            # A parent that was killed may have left copies of our pipe with processes that it forked.
            if os.name == "posix" and not select.select([source], [], [], 10)[0]:
                if os.getppid() != parent:
                    return
                continue
            piece = source.read(1 << 16)
            if not piece:
                return
            pending += piece
        line, _, pending = pending.partition(b"\n")
        request = json.loads(line)
        try:
            reply = _answer(request, cpu)
        except MemoryError:
            reply = {"failure": "memory"}
        except RecursionError:
            reply = {"failure": "recursion"}
        except Exception as error:
            reply = {"failure": type(error).__name__}
        _arm(0)
        out.write(json.dumps({"id": request["id"], **reply}) + "\n")
        out.flush()
        if "failure" in reply:
            # Whatever went wrong, the next answer gets a fresh process.
            return


if __name__ == "__main__":
    main()
