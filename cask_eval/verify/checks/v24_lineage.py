from __future__ import annotations

from collections.abc import Iterator

from cask_eval.ledger.lineage import spent
from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence


@check("V24", "no study of the same problems before", "register", "heldout_manifest")
def v24(e: Evidence) -> Iterator[str]:
    """No other study of this ledger had run these held-out problems when this one was registered, unless this one calls
    itself exploratory. What happened outside this ledger cannot be seen."""
    assert e.heldout_manifest
    count = len(e.heldout_manifest.items)
    for other in spent(e.events, e.state, e.heldout_manifest, e.elsewhere):
        blamed = other.early and other.shared is not None and e.label == "confirmatory"
        said = other.text(count)
        yield f"{said}, and this study was registered afterwards as confirmatory" if blamed else Note(said)
    yield Note("studies outside this ledger cannot be seen")
