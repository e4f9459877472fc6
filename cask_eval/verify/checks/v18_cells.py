from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V18", "no cell hidden", "protocol", "select", "document")
def v18(e: Evidence) -> Iterator[str]:
    """The family is the registered cells, and the analysis shows every one of them."""
    assert e.protocol and e.select and e.document
    cells = [cell.name for cell in e.protocol.cells]
    if e.document.family != len(cells):
        yield f"the analysis corrects for {e.document.family} cells, registered are {len(cells)}"
    if (shown := [cell.cell for cell in e.document.cells]) != cells:
        yield f"the analysis shows {', '.join(shown) or 'no cell'}; registered are {', '.join(cells)}"
    for cell in e.document.cells:
        if lacking := set(e.protocol.arms) - set(cell.arms):
            yield f"{cell.cell} shows no {', '.join(sorted(lacking))}"
