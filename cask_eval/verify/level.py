"""What a study's evidence is worth: who besides its author vouches for it."""

from __future__ import annotations

from collections.abc import Sequence

from cask_eval.ledger.levels import Level
from cask_eval.verify.check import Rerun, Result
from cask_eval.verify.evidence import Evidence


def level_of(e: Evidence, results: Sequence[Result], again: Rerun | None = None) -> Level:
    """The highest level whose condition holds; a study that fails a check has none but L0.

    L1: a head was given, and it stands at or behind the registration. L2: every milestone is stamped, in order
    (`cask_eval.anchor.check`). L3: enough trials were executed again, and all came out the same. A push to a third
    party's git is a head that the reviewer takes from there.
    """
    if any(r.status == "fail" for r in results) or (again and again.status == "fail"):
        return "L0"
    if again and again.enough:
        return "L3"
    if e.state.anchors and e.anchors.anchored:
        return "L2"
    if e.head and e.state.register and any(x.hash == e.head and x.seq >= e.state.register[0].seq for x in e.events):
        return "L1"
    return "L0"
