from __future__ import annotations

from collections.abc import Iterator

from cask_eval.protocol.keys import full_arms
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V18", "no comparison hidden", "protocol", "select", "document")
def v18(e: Evidence) -> Iterator[str]:
    """The family is the registered one, and the analysis shows every comparison of the survivors, every arm that ran,
    and every candidate that was screened."""
    assert e.protocol and e.select and e.document
    if e.document.family != e.protocol.family:
        yield f"the analysis corrects for {e.document.family} comparisons, registered are {e.protocol.family}"
    listed = [c.name for c in e.protocol.candidates]
    confirmed = [name for name in listed if name in e.select.survivors]
    due = [(name, cell.name) for name in confirmed for cell in e.protocol.cells]
    if (shown := [(c.candidate, c.cell) for c in e.document.cells]) != due:
        yield f"the analysis shows {_names(e, shown)}; due are {_names(e, due)}"
    if (shown := [(s.candidate, s.survived) for s in e.document.screening]) != [(n, n in confirmed) for n in listed]:
        yield "the analysis lists other candidates or other survivors than the selection"
    arms = e.protocol.heldout_arms(e.select.survivors)
    rows = [(cell, arms) for cell in e.protocol.cells]
    rows += [(cell, full_arms("heldout")) for cell in e.protocol.reference_cells]
    for cell, listed in rows:
        if (shown := sorted(e.document.arms.get(cell.name, {}))) != sorted(listed):
            yield f"{cell.name} shows {', '.join(shown) or 'no arm'}; due are {', '.join(sorted(listed))}"


def _names(e: Evidence, comparisons: list[tuple[str, str]]) -> str:
    assert e.protocol
    return ", ".join(e.protocol.comparison(*c) for c in comparisons) or "none"
