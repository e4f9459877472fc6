from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.order import faults


@check("V19", "no interim look", "close")
def v19(e: Evidence) -> Iterator[str]:
    """One analysis, after all records are closed."""
    yield from faults(e, "analysis")
