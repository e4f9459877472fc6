from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence


@check("V03", "ledger chain unbroken")
def v03(e: Evidence) -> Iterator[str]:
    """Every line has its place, its own digest and the digest of the line before."""
    if not e.lines:
        yield "the ledger is empty"
    yield from e.ledger_faults
    yield Note(f"{len(e.events)} events, {len(e.own)} of them of this study")
