from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence


@check("V22", "no stale outputs", "register", "dev", "heldout")
def v22(e: Evidence) -> Iterator[str]:
    """Every held-out session ran the registered method code in the registered environment, so no output is left from
    another version; and no held-out trial is a copy of a dev trial."""
    assert e.register and e.dev and e.heldout
    for s in e.sessions:
        if s.methods is None or s.environment is None:
            said = f"session {s.session} does not say what ran it"
            yield Note(f"{said}; when this study was registered none did") if e.early_form else said
            continue
        if s.methods != e.register.methods:
            yield f"session {s.session} ran other method code than was registered"
        if s.environment != e.register.environment:
            yield f"session {s.session} ran in another environment than was registered"
    tuned = {r.drawn for r in e.dev.rows if r.output}
    for r in e.heldout.rows:
        if r.drawn in tuned:
            yield f"{r.where.partition('/')[2]}: the output and its seed are those of a dev trial"
