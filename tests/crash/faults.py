"""Faults at the points where a process touches the files below one folder: what a crash, a full disk or a signal does
there. Installed in a process that is about to run one command and end."""

import builtins
import errno
import io
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Faults:
    """`at` is the number of the point, counted from 1, at which `do` happens; 0 lets everything pass.

    kill: the process dies before the point, in the middle of it when it is a write. after: it dies right after.
    interrupt, terminate: a signal arrives there. full: no room from there on; hiccup: there is none at that point only.
    `only` counts the points of that name alone.
    """

    root: str
    at: int = 0
    do: str = "kill"
    share: float = 0.5
    only: str = ""
    names: list[str] = field(default_factory=list)
    refuse: bool = False

    def inside(self, path) -> bool:
        try:
            return os.path.abspath(os.fspath(path)).startswith(self.root + os.sep)
        except TypeError:
            return False

    def point(self, name: str, path, act, partly=None, needs_room: bool = False):
        """Do `act`, one numbered step, or what happens instead; `partly` does a part of it and says what it gives."""
        label = f"{name} {os.path.basename(os.fspath(path))}"
        if not self.only or label == self.only:
            self.names.append(label)
        here = len(self.names) == self.at and (not self.only or label == self.only)
        if needs_room and (self.refuse or here and self.do in ("full", "hiccup")):
            first = not self.refuse and here
            self.refuse = self.do == "full"
            if first and partly:
                self.refuse = True
                return partly()
            named = [os.fspath(path)] if name in ("open", "create") else []
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)
        if self.refuse and self.do == "hiccup":
            self.refuse = False
        if here and self.do == "kill":
            if partly:
                partly()
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return act()
        finally:
            if here and self.do in SIGNALS:
                os.kill(os.getpid(), SIGNALS[self.do])

    def install(self) -> None:
        self._wrap_open()
        for name, room in (("fsync", True), ("replace", False), ("unlink", False), ("truncate", False)):
            self._wrap(name, room)
        inner = os.open

        def opened(path, flags, *args, **kwargs):
            if not self.inside(path):
                return inner(path, flags, *args, **kwargs)
            new = bool(flags & os.O_CREAT) and not os.path.exists(path)
            return self.point("open", path, lambda: inner(path, flags, *args, **kwargs), needs_room=new)

        os.open = opened

    def _wrap(self, name: str, room: bool) -> None:
        inner = getattr(os, name)

        def wrapped(what, *args, **kwargs):
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what
            if not self.inside(path):
                return inner(what, *args, **kwargs)
            return self.point(name, path, lambda: inner(what, *args, **kwargs), needs_room=room)

        setattr(os, name, wrapped)

    def _wrap_open(self) -> None:
        inner, faults = builtins.open, self

        class Raw(io.FileIO):
            def write(self, data):
                data = bytes(data)
                part = data[: int(len(data) * faults.share)]
                write = super().write
                return faults.point("write", self.name, lambda: write(data), lambda: write(part), needs_room=True)

            def truncate(self, size=None):
                return faults.point("truncate", self.name, lambda: io.FileIO.truncate(self, size))

        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *args, **kwargs):
            if not faults.inside(file) or not set(mode) & set("wax+"):
                return inner(file, mode, buffering, encoding, errors, newline, *args, **kwargs)
            plain = mode.replace("b", "").replace("t", "")
            new = not os.path.exists(file)
            raw = faults.point("create" if new else "open", file, lambda: Raw(os.fspath(file), plain), needs_room=new)
            if buffering == 0:
                return raw
            wrapped = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return wrapped if "b" in mode else io.TextIOWrapper(wrapped, encoding, errors, newline)

        builtins.open = io.open = opened


SIGNALS = {"after": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}


def journal(path: Path) -> None:
    """Note every trial as it finishes, in a file of its own that no fault touches."""
    from cask_eval.runner.trials import Bench

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    inner = Bench._record

    def record(self, *args, **kwargs):
        made = inner(self, *args, **kwargs)
        os.write(fd, ("/".join(str(part) for part in made.key) + "\n").encode())
        return made

    Bench._record = record
