"""The one form of zip (APPNOTE 6.3) that bundles have, byte for byte.

Members are stored, not compressed, and lie without a gap from the first byte to the central directory, which ends the
file. Every header field is a constant or follows from name, size and CRC-32, so a reader makes the headers again and
compares: what is not the same is refused. Evidence that is large is packed before (`cask-eval pack`), not by the zip.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from cask_eval.bundle.errors import BundleError
from cask_eval.bundle.names import MAX_NAME, clash, fault

MAX_MEMBERS = 1000
#: Offsets and sizes have 32 bits; the largest value means "see elsewhere" (zip64), which this form does not have.
MAX_BYTES = 2**32 - 2
BLOCK = 1 << 20

REMEDY = "export it again with `cask-eval export`, or unpack it with a tool that you trust and verify the folder"

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")

#: Version 2.0, made on Unix; names in UTF-8; stored; 1980-01-01 00:00; a plain file that its owner may write.
_COMMON = (20, 0x0800, 0, 0, 0x21)
_MADE_BY = (3 << 8) | 20
_ATTRIBUTES = 0o100644 << 16

_FIELDS = ("signature", "version made by", "version needed", "flags (encrypted or streamed?)",
           "method (compressed?)", "time", "date", "CRC-32", "compressed size", "size", "name length", "extra length",
           "comment length", "disk", "internal attributes", "attributes (a link or a folder?)", "offset")  # fmt: skip


class Member(NamedTuple):
    """One file of a bundle. `offset` is where its local header begins."""

    name: str
    size: int
    crc: int
    offset: int

    @property
    def data(self) -> int:
        """Where its bytes begin."""
        return self.offset + _LOCAL.size + len(self.name.encode())

    def local(self) -> bytes:
        """Its header in front of its bytes."""
        name = self.name.encode()
        return _LOCAL.pack(b"PK\x03\x04", *_COMMON, self.crc, self.size, self.size, len(name), 0) + name

    def central(self) -> bytes:
        """Its line in the central directory."""
        name = self.name.encode()
        return _CENTRAL.pack(b"PK\x01\x02", _MADE_BY, *_COMMON, self.crc, self.size, self.size, len(name), 0, 0, 0, 0,
                             _ATTRIBUTES, self.offset) + name  # fmt: skip


def end(members: list[Member], at: int) -> bytes:
    """The central directory, which begins at byte `at`, and the end record."""
    lines = b"".join(member.central() for member in members)
    return lines + _END.pack(b"PK\x05\x06", 0, 0, len(members), len(members), len(lines), at, 0)


def read(f: BinaryIO, path: str) -> list[Member]:
    """The members of a bundle. Raises BundleError wherever it differs from the form; nothing is unpacked, and what is
    read is bounded whatever the file says."""

    def refuse(what: str) -> BundleError:
        return BundleError(f"{path}: {what}; {REMEDY}")

    size = f.seek(0, 2)
    f.seek(max(0, size - _END.size))
    tail = f.read(_END.size)
    if len(tail) < _END.size or tail[:4] != b"PK\x05\x06":
        raise refuse("does not end as a zip file does: it is cut off, something follows it, or it is none")
    _, disk, first, here, count, length, at, comment = _END.unpack(tail)
    if (disk, first, here, comment) != (0, 0, count, 0):
        raise refuse("has several parts, or a comment")
    if not 1 <= count <= MAX_MEMBERS:
        raise refuse(f"has {count} members, and a bundle has at most {MAX_MEMBERS}")
    if length > count * (_CENTRAL.size + MAX_NAME) or at + length + _END.size != size:
        raise refuse("has a directory of the wrong size, or something before, between or behind its parts")

    f.seek(at)
    directory = f.read(length)
    members: list[Member] = []
    place, offset = 0, 0
    for number in range(1, count + 1):
        head = directory[place : place + _CENTRAL.size]
        if len(head) < _CENTRAL.size:
            raise refuse(f"its directory ends before member {number}")
        found = _CENTRAL.unpack(head)
        crc, stored, name_length = found[7], found[9], found[10]
        raw = directory[place + _CENTRAL.size : place + _CENTRAL.size + name_length]
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise refuse(f"the name of member {number} is not UTF-8") from None
        if what := fault(name):
            raise refuse(f"the name of member {number}, {name!r:.100}, {what}")
        member = Member(name, stored, crc, offset)
        if member.data + stored > at:
            raise refuse(f"member {name!r:.100} has {stored} bytes by its header, more than are there")
        for field, value, want in zip(_FIELDS, found, _CENTRAL.unpack(member.central()[: _CENTRAL.size]), strict=True):
            if value != want:
                raise refuse(f"member {name!r:.100}: {field} is {value!r}, not {want!r}")
        f.seek(offset)
        if f.read(len(member.local())) != member.local():
            raise refuse(f"member {name!r:.100} has another header in the file than in the directory")
        members.append(member)
        place, offset = place + len(member.central()), member.data + stored
    if place != length or offset != at:
        raise refuse("has something between its parts that belongs to no member")
    if pair := clash(m.name for m in members):
        raise refuse(f"members {pair[0]!r:.100} and {pair[1]!r:.100} are one file, or one is in the other")
    return members


def blocks(f: BinaryIO, member: Member, path: str) -> Iterator[bytes]:
    """The bytes of a member, piece by piece. Raises BundleError at their end when the CRC-32 is another."""
    f.seek(member.data)
    left, crc = member.size, 0
    while left:
        block = f.read(min(BLOCK, left))
        if not block:
            raise BundleError(f"{path}: ends inside member {member.name!r:.100}; fetch it again")
        left -= len(block)
        crc = zlib.crc32(block, crc)
        yield block
    if crc != member.crc:
        raise BundleError(f"{path}: member {member.name!r:.100} is damaged (its CRC-32 is another); fetch it again")
