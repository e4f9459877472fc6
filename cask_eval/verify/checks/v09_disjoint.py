from __future__ import annotations

from collections.abc import Iterator

from cask_eval.splits.disjoint import overlaps
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V09", "dev and held-out disjoint", "dev_manifest", "heldout_manifest")
def v09(e: Evidence) -> Iterator[str]:
    """No problem is in both splits: by id, by normalised text, by near-duplicate sketch."""
    assert e.dev_manifest and e.heldout_manifest
    yield from overlaps(e.dev_manifest, e.heldout_manifest)
