from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import Note, Skip, check
from cask_eval.verify.evidence import Evidence


@check("V24", "no study of the same problems before", "register", "heldout_manifest")
def v24(e: Evidence) -> Iterator[str]:
    """No other study of this ledger had looked at these held-out problems when this one was registered, unless this one
    calls itself exploratory. What happened outside this ledger cannot be seen."""
    assert e.heldout_manifest
    for found in e.shared:
        if found.look.study == e.study:
            continue
        said = found.text(len(e.heldout_manifest.items))
        if not found.early or e.label == "exploratory":
            yield Note(said)
        elif found.count is None:
            yield Skip(said)
        else:
            yield f"{said}, and this study was registered afterwards as confirmatory"
    yield Note("studies outside this ledger cannot be seen")
