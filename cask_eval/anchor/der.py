"""The few places of a time-stamp reply that are read or put in order before the parser proper sees it (X.690, DER).

No general ASN.1: `rfc3161_client` parses and verifies; this takes a reply apart into the elements that it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

INTEGER, OCTET_STRING, OID, SEQUENCE, SET = 0x02, 0x04, 0x06, 0x30, 0x31
#: The context-specific tag [0], constructed.
CONTEXT_0 = 0xA0


class Element(NamedTuple):
    """One element: its tag, its content, and the whole of its bytes."""

    tag: int
    content: bytes
    whole: bytes


def read(data: bytes) -> Element:
    """The one element that `data` is. Raises ValueError when there is none, or more than it."""
    return some(data, 1)[0]


def some(data: bytes, count: int) -> list[Element]:
    """The elements that `data` is a row of. Raises ValueError when there are not so many."""
    found = elements(data)
    if len(found) != count:
        raise ValueError(f"{len(found)} elements instead of {count}")
    return found


def elements(data: bytes) -> list[Element]:
    """The elements that `data` is a row of. Raises ValueError on what is not DER."""
    out, at = [], 0
    while at < len(data):
        start = at
        if at + 2 > len(data):
            raise ValueError("an element is cut off")
        tag, length = data[at], data[at + 1]
        at += 2
        if tag & 0x1F == 0x1F:
            raise ValueError("a tag of several bytes")
        if length & 0x80:
            count = length & 0x7F
            raw = data[at : at + count]
            at += count
            if not 1 <= count <= 4 or len(raw) < count:
                raise ValueError("a length that DER does not have")
            length = int.from_bytes(raw, "big")
            if length < 0x80 or raw[0] == 0:
                raise ValueError("a length that is not as short as it can be")
        if length > len(data) - at:
            raise ValueError("an element is cut off")
        out.append(Element(tag, data[at : at + length], data[start : at + length]))
        at += length
    return out


def write(tag: int, content: bytes) -> bytes:
    """The element with this tag and content."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    raw = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(raw)]) + raw + content


def sequence(*parts: bytes) -> bytes:
    return write(SEQUENCE, b"".join(parts))


def sort_set(parts: Sequence[Element]) -> bytes:
    """The content of a SET OF with its members in the order of their encodings (X.690 §11.6)."""
    return b"".join(sorted(part.whole for part in parts))
