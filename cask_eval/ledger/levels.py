"""The levels of evidence: who besides the author vouches for a study."""

from __future__ import annotations

from typing import Literal

Level = Literal["L0", "L1", "L2", "L3"]

#: In a few words, and then in some more.
LEVELS: dict[Level, str] = {
    "L0": "self-asserted: consistent in itself, dated by nobody but its author",
    "L1": "known to a third party: nothing up to a head that was noted elsewhere has changed since",
    "L2": "time-stamped by an authority: it signed the registration, the start and the end of the held-out run",
    "L3": "run by a reviewer: trials drawn at random came out the same",
}


def brief(level: Level) -> str:
    """The few words."""
    return LEVELS[level].partition(":")[0]
