"""Files of one JSON value per line that survive a crash: how they are read, repaired and appended to.

A line is complete when it ends in a newline. A crash can only leave an incomplete last line behind; that fragment
is set aside, never guessed at. A last line that lacks nothing but its newline is complete: a strict beginning of a
JSON object is never itself a JSON object.

A file that nothing more will be added to can be packed: ``X.jsonl.gz`` then stands for ``X.jsonl``.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cask_eval.canonical import MAX_VALUES
from cask_eval.errors import RecordError

# Every line is an object in memory, however short it is.
MAX_LINES = 10_000_000


class Lines(NamedTuple):
    """`lines` without their line ends (CRLF is read as LF); `torn` is the incomplete last line, b"" if none."""

    lines: list[bytes]
    torn: bytes
    open_end: bool = False


def split(data: bytes) -> Lines:
    """Cut a file's bytes into complete lines and the fragment of a line that a crash left behind. Raises RecordError
    when there are too many lines to hold."""
    if data.count(b"\n") > MAX_LINES:
        raise RecordError(f"there are more than {MAX_LINES} lines, far more than any study writes; restore the file")
    *lines, last = data.split(b"\n")
    lines = [line.removesuffix(b"\r") for line in lines]
    if not last:
        return Lines(lines, b"")
    if _complete(last):
        return Lines([*lines, last.removesuffix(b"\r")], b"", open_end=True)
    return Lines(lines, last)


def read(path: Path) -> Lines:
    """`split` of a file; a file that is not there has no lines."""
    try:
        return split(path.read_bytes())
    except FileNotFoundError:
        return Lines([], b"")


def packed(path: Path) -> Path:
    """Where the packed form of a file lies."""
    return path.with_name(path.name + ".gz")


def form(path: Path) -> Path | None:
    """Which form of a file is there, the plain or the packed one; None where neither is. Raises RecordError when both
    are."""
    if not packed(path).exists():
        if path.exists():
            return path
        # It may have been packed between the two looks.
        if not packed(path).exists():
            return None
    if path.exists():
        raise RecordError(
            f"{path} and {packed(path).name} are both there; `cask-eval pack` removes the plain one if they agree"
        )
    return packed(path)


class Stream:
    """The lines of a file or of its packed form, which may be large, one after the other; a file that is not there has
    none. `form`: the one that is read, where both are there. `torn`, as in `Lines`, is known at the end. Raises
    RecordError as `form` and `pieces`."""

    def __init__(self, path: Path, form: Path | None = None) -> None:
        self.path, self.form, self.torn = path, form, b""

    def __iter__(self) -> Iterator[bytes]:
        parts: list[bytes] = []
        for piece in self._pieces():
            if b"\n" not in piece:
                parts.append(piece)
                continue
            *lines, rest = b"".join([*parts, piece]).split(b"\n")
            parts = [rest]
            yield from (line.removesuffix(b"\r") for line in lines)
        last = split(b"".join(parts))
        self.torn = last.torn
        yield from last.lines

    def _pieces(self) -> Iterator[bytes]:
        for again in (True, False):
            where = self.form or form(self.path)
            if where is None or (self.form and not where.exists()):
                return
            found = pieces(where)
            try:
                first = next(found, b"")
            except RecordError:
                if again and not where.exists():  # packed between two looks
                    continue
                raise
            yield first
            yield from found
            return


def read_either(path: Path) -> Lines:
    """`split` of a file or of its packed form. Raises RecordError as `form` and `pieces`."""
    lines = list(stream := Stream(path))
    return Lines(lines, stream.torn)


def read_packed(path: Path) -> Lines:
    """`split` of the packed form of a file. Raises RecordError as `pieces`."""
    return split(b"".join(pieces(packed(path))))


def pieces(path: Path) -> Iterator[bytes]:
    """What a file holds, unpacked where it is a packed one, at most 1 MiB at a time. Raises RecordError when it is
    damaged or incomplete."""
    is_packed = path.suffix == ".gz"
    try:
        with (gzip.open if is_packed else open)(path, "rb") as f:
            while piece := f.read(1 << 20):
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"{path}: cannot be {'unpacked' if is_packed else 'read'}: {error}") from None


def pack(path: Path) -> None:
    """Replace a file that is complete by its packed form. That one is whole and on disk before the plain one goes."""
    replace(packed(path), _gzip(path.read_bytes()))
    remove(path)


def remove(path: Path) -> None:
    """Remove a file for good."""
    path.unlink()
    sync_folder(path.parent)


def move(path: Path, target: Path) -> None:
    """Give a file another name, for good; there must be none of that name."""
    if os.path.lexists(target):
        raise RecordError(f"{target} is there already; move it away")
    os.replace(path, target)
    sync_folder(target.parent)
    sync_folder(path.parent)


def ends(path: Path) -> Iterator[int]:
    """Where each line of a file ends, in bytes."""
    at = 0
    with open(path, "rb") as f:
        for line in f:
            at += len(line)
            yield at


def append(path: Path, data: bytes) -> None:
    """Write `data` behind the last line and return when the disk has it. When the system refuses, which raises OSError
    with the file's name, the file is left as it was."""
    created = not path.exists()
    size = 0 if created else path.stat().st_size
    try:
        # Without a buffer, which would be written once more when the file is closed after an error.
        with open(path, "ab", buffering=0) as f:
            rest = memoryview(data)
            while rest:
                rest = rest[f.write(rest) :]
            os.fsync(f.fileno())
    except OSError as error:
        with suppress(OSError):
            path.unlink() if created else os.truncate(path, size)
        error.filename = error.filename or str(path)
        raise
    if created:
        sync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Put a whole file in the place of what was there: whoever looks sees the one or the other, also after a crash."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with open(draft, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        error.filename = error.filename or str(path)
        raise
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
        cut(path, path.stat().st_size - len(found.torn))
    return found.torn


def cut(path: Path, size: int) -> None:
    """Take away what a file has beyond so many bytes, for good."""
    with open(path, "r+b") as f:
        f.truncate(size)
        f.flush()
        os.fsync(f.fileno())


def sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content. Windows cannot open folders and needs no such step."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise
    finally:
        os.close(fd)


def _gzip(data: bytes) -> bytes:
    """One gzip member (RFC 1952) with nothing in its header that depends on time, file, system or Python's version."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x02\xff"
    return (
        head + deflate.compress(data) + deflate.flush() + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    )


def _complete(line: bytes) -> bool:
    """Whether a whole JSON value stands at the start: such a line was written in full, however wrong it is."""
    if sum(line.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:  # no honest line, and not worth its memory
        return False
    try:
        json.JSONDecoder().raw_decode(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return False
    return True
