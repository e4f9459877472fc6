from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V20", "the registered test", "protocol", "document")
def v20(e: Evidence) -> Iterator[str]:
    """The analysis uses the registered endpoint, test, side, level and correction. The tests of accuracy are exact: no
    seed, no draws. What is drawn for other endpoints and for max_t comes from a seed that follows from the
    registration, and V21 draws it again."""
    assert e.protocol and e.document
    test = e.protocol.test
    for field in ("endpoint", "procedure", "alternative", "alpha", "correction"):
        if getattr(e.document, field) != getattr(test, field):
            yield f"{field} is {getattr(e.document, field)}, registered was {getattr(test, field)}"
    for cell in e.document.cells:
        if cell.p_registered != cell.p.get(test.procedure):
            name = e.protocol.comparison(cell.candidate, cell.cell)
            yield f"{name}: the p that decides is not that of {test.procedure}"
