"""Names that mean the same file on every system, and that stay below the folder they are put into."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MAX_NAME = 512
MAX_PART = 200

#: Windows opens devices under these names, whatever their suffix.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_RESERVED = re.compile(r'[\\:*?"<>|]')


def fault(name: str) -> str | None:
    """Why a path cannot stand in a bundle; None when it can."""
    parts = name.split("/")
    if len(name.encode(errors="replace")) > MAX_NAME or any(len(p.encode(errors="replace")) > MAX_PART for p in parts):
        return f"is longer than {MAX_NAME} bytes, or a part of it than {MAX_PART}"
    if any(part in ("", ".", "..") for part in parts):
        return "is not a plain path below the bundle"
    if _RESERVED.search(name) or not name.isprintable():
        return "holds a character that some system reads as something else"
    if any(part[-1] in ". " or _DEVICE.fullmatch(part) for part in parts):
        return "is no file's name on Windows"
    return None


def clash(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that are one file on some system (letter case, Unicode form), or of which one would be the other's
    folder."""
    seen: dict[str, str] = {}
    for name in names:
        if (folded := _folded(name)) in seen:
            return seen[folded], name
        seen[folded] = name
    for folded, name in seen.items():
        parts = folded.split("/")
        for end in range(1, len(parts)):
            if (folder := "/".join(parts[:end])) in seen:
                return seen[folder], name
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
