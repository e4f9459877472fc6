"""Files of one JSON value per line that survive a crash: how they are read, repaired and appended to.

A line is complete when it ends in a newline. A crash can only leave an incomplete last line behind; that fragment
is set aside, never guessed at. A last line that lacks nothing but its newline is complete: a strict beginning of a
JSON object is never itself a JSON object.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from cask_eval.errors import RecordError, StateError


class Lines(NamedTuple):
    """`lines` without their line ends (CRLF is read as LF); `torn` is the incomplete last line, b"" if none."""

    lines: list[bytes]
    torn: bytes
    open_end: bool = False


def split(data: bytes) -> Lines:
    """Cut a file's bytes into complete lines and the fragment of a line that a crash left behind."""
    *lines, last = data.split(b"\n")
    lines = [line.removesuffix(b"\r") for line in lines]
    if not last:
        return Lines(lines, b"")
    if _complete(last):
        return Lines([*lines, last.removesuffix(b"\r")], b"", open_end=True)
    return Lines(lines, last)


def packed(path: Path) -> Path:
    """Where the packed form of a file lies (`pack`)."""
    return path.with_name(path.name + ".gz")


def read(path: Path) -> Lines:
    """`split` of a file or of its packed form; a file that is not there has no lines. Raises RecordError as `unpack`,
    and when both are there."""
    if packed(path).exists():
        if path.exists():
            raise RecordError(f"{path} and {packed(path).name} are both there; keep the one you trust")
        return split(unpack(packed(path)))
    try:
        return split(path.read_bytes())
    except FileNotFoundError:
        return Lines([], b"")


def unpack(path: Path, limit: int | None = None) -> bytes:
    """The bytes in a packed file, read in pieces: no more than `limit` are ever held. Raises RecordError when it
    is damaged or holds more."""
    parts, size = [], 0
    try:
        with gzip.open(path, "rb") as f:
            while part := f.read(1 << 20):
                parts.append(part)
                size += len(part)
                if limit is not None and size > limit:
                    raise RecordError(f"{path}: holds more than {limit} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"{path}: cannot be unpacked: {error}") from None
    return b"".join(parts)


def pack(path: Path) -> None:
    """Replace a file that is complete by its packed form, the same bytes on every machine. The packed form is whole and
    on disk before the plain one goes."""
    target, part = packed(path), path.with_name(path.name + ".gz.part")
    with open(part, "wb") as f:
        f.write(gzip.compress(path.read_bytes(), 9, mtime=0))
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, target)
    sync_folder(path.parent)
    path.unlink()
    sync_folder(path.parent)


def append(path: Path, data: bytes) -> None:
    """Write `data` behind the last line and return when the disk has it. Raises StateError when the file is packed."""
    if packed(path).exists():
        raise StateError(f"{packed(path)} is packed: its study is closed, and nothing can be added")
    created = not path.exists()
    with open(path, "ab") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    if created:
        sync_folder(path.parent)


def repair(path: Path) -> bytes:
    """Give a complete last line its newline, or move an incomplete one to ``<path>.torn``. Returns the fragment.

    The fragment is on disk in its new place before it leaves the old one, so a crash in between loses nothing.
    """
    found = read(path)
    if found.open_end:
        append(path, b"\n")
    if found.torn:
        append(path.with_name(path.name + ".torn"), found.torn + b"\n")
        with open(path, "r+b") as f:
            f.truncate(path.stat().st_size - len(found.torn))
            f.flush()
            os.fsync(f.fileno())
    return found.torn


def sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content. Windows cannot open folders and needs no such step."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _complete(line: bytes) -> bool:
    """Whether a whole JSON value stands at the start: such a line was written in full, however wrong it is."""
    try:
        json.JSONDecoder().raw_decode(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return False
    return True
