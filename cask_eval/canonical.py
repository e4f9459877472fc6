"""One byte string per value (RFC 8785), and the digests built on it.

Digests are written ``sha256:<hex>``. Floats are refused: a number that decides something is a decimal
string or an integer, so that no platform can print it another way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rfc8785

ZERO = "sha256:" + "0" * 64

# A few bytes of JSON become a Python object of hundreds, and every object that is not the right one an error message.
# These are many times what any honest document holds.
MAX_VALUES = 2_000_000
MAX_OBJECTS = 100_000
MAX_INTEGER = 2**53 - 1

_AS_ZERO = bytes.maketrans(b"0123456789", b"0" * 10)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def canonical(value: Any) -> bytes:
    """RFC 8785 (JCS) bytes of `value`. Raises ValueError on floats, lone surrogates and integers beyond 2**53."""
    _refuse_floats(value, "$")
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise ValueError(f"not canonical JSON: {error}") from error


def digest(value: Any) -> str:
    """SHA-256 of the canonical bytes."""
    return digest_bytes(canonical(value))


def digest_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks (weights are large)."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return "sha256:" + h.hexdigest()


def digest_text(data: bytes) -> str:
    """SHA-256 of text with CRLF read as LF: the same checkout on any platform has the same digest."""
    return digest_bytes(data.replace(b"\r\n", b"\n"))


def digest_tree(root: Path, suffixes: Sequence[str] = (".py",)) -> str:
    """Digest of a source tree: sorted POSIX paths with their text digests; caches and other files are left out."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix in suffixes and "__pycache__" not in p.parts)
    return digest({p.relative_to(root).as_posix(): digest_text(p.read_bytes()) for p in files})


def merkle_root(leaves: Iterable[bytes]) -> str:
    """Merkle tree hash of RFC 6962 §2.1: leaves and nodes hashed under different prefixes, so neither passes for
    the other."""
    return merkle_root_of(map(leaf_hash, leaves))


def leaf_hash(leaf: bytes) -> bytes:
    """What a leaf is worth to `merkle_root`: 32 bytes that stand for it."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def merkle_root_of(hashes: Iterable[bytes]) -> str:
    """`merkle_root` of leaves of which only the hashes were kept."""
    tree = Merkle()
    for found in hashes:
        tree.add(found)
    return tree.root


class Merkle:
    """`merkle_root_of` of hashes that come one by one and are not kept: what it remembers grows with the logarithm of
    their number."""

    def __init__(self) -> None:
        # RFC 6962 splits at the largest power of two below n, so a tree is a row of full trees, the largest first, each
        # joined with all that come behind it. (height, hash) of each.
        self._full: list[tuple[int, bytes]] = []

    def add(self, leaf: bytes) -> None:
        """Add the `leaf_hash` of the next leaf."""
        height = 0
        while self._full and self._full[-1][0] == height:
            leaf = hashlib.sha256(b"\x01" + self._full.pop()[1] + leaf).digest()
            height += 1
        self._full.append((height, leaf))

    @property
    def root(self) -> str:
        """The root of what was added until now."""
        if not self._full:
            return "sha256:" + hashlib.sha256(b"").hexdigest()
        *before, (_, top) = self._full
        for _, found in reversed(before):
            top = hashlib.sha256(b"\x01" + found + top).digest()
        return "sha256:" + top.hex()


def loads(data: str | bytes) -> Any:
    """JSON with the loopholes shut: duplicate keys, NaN and Infinity, floats, integers and texts that have no canonical
    form, deep nesting, bytes that are not UTF-8, a byte order mark, and more values than memory is good for raise
    ValueError."""
    # Python's own reading of bytes guesses UTF-16 and lets encoded surrogates pass.
    text = data.decode() if isinstance(data, bytes) else data
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    left = MAX_OBJECTS

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_OBJECTS} objects")
        return _no_duplicates(found)

    try:
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=_no_constants,
            parse_float=_no_floats,
            parse_int=_small if _many_digits(text) else None,  # slower than Python's own
        )
        if "\\u" in text and _HALF_PAIR.search(text):  # two halves make a character, one alone is none
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half of a pair of surrogates stands alone") from None


def _many_digits(text: str) -> bool:
    """Whether sixteen digits stand in a row. A regular expression for that takes longer than all of the parsing."""
    return b"0" * 16 in text.encode().translate(_AS_ZERO)


def _small(token: str) -> int:
    if len(token) > 17 or abs(int(token)) > MAX_INTEGER:
        raise ValueError(f"{token:.40} is beyond ±{MAX_INTEGER}")
    return int(token)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"duplicate key {twice!r:.100}")
    return out


def _no_constants(token: str) -> Any:
    raise ValueError(f"{token} is not a JSON number")


def _no_floats(token: str) -> Any:
    raise ValueError(f"{token:.40}: numbers that decide are integers or decimal strings")


def _refuse_floats(value: Any, where: str) -> None:
    if isinstance(value, float):
        raise ValueError(f"{where} is the float {value!r}; write a decimal string")
    if isinstance(value, dict):
        for k, v in value.items():
            _refuse_floats(v, f"{where}.{k}")
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            _refuse_floats(v, f"{where}[{i}]")
