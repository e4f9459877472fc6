from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.order import faults


@check("V19", "no interim look")
def v19(e: Evidence) -> Iterator[str]:
    """One analysis, after all records are closed."""
    yield from faults(e, "analysis")
    if e.close is None:
        yield Skip(e.why("close"))
