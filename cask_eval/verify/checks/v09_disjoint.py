from __future__ import annotations

from collections.abc import Iterator

from cask_eval.splits.disjoint import overlaps
from cask_eval.verify.check import Note, Skip, check
from cask_eval.verify.evidence import Evidence


@check("V09", "dev and held-out disjoint", "register", "dev_manifest", "heldout_manifest")
def v09(e: Evidence) -> Iterator[str]:
    """No problem is in both splits: by id, by normalised text, by near-duplicate sketch. Dev splits that the study had
    before an amendment count like the present one, unless the study calls itself exploratory."""
    assert e.register and e.dev_manifest and e.heldout_manifest
    yield from overlaps(e.dev_manifest, e.heldout_manifest)
    present = e.register.splits["dev"].digest
    for found in e.shared:
        look = found.look
        if look.study != e.study or look.lock.digest == present:
            continue
        if found.count is None:
            yield Skip(f"{look.lock.path}, the dev split until line {look.event.seq + 1} was amended, is not here")
        elif e.label == "confirmatory":
            yield f"{found.count} held-out problems were dev problems until line {look.event.seq + 1} was amended"
        else:
            yield Note(f"{found.count} held-out problems were dev problems before")
