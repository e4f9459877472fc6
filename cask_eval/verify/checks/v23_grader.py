from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence


@check("V23", "answer key and grader as registered", "register", "dev", "heldout")
def v23(e: Evidence) -> Iterator[str]:
    """The task's package, which holds the answer key's source and the grader, was the same at registration and at the
    end, and every record names the registered grader. V08 compares the answers, V13 the grades."""
    assert e.register and e.dev and e.heldout
    used = {about.grader for f in (e.dev, e.heldout) for about in f.rows.abouts}
    if e.register.grader is None or e.register.task is None:
        said = "the registration does not name the grader"
        yield Note(f"{said}; when this study was registered none did, and V13 has to do") if e.early_form else said
        return
    for grader in sorted(used - {e.register.grader}):
        yield f"records were graded by {grader}, registered is {e.register.grader}"
    if e.close and e.close.task != e.register.task:
        yield "the task's package at close is not the one that was registered"
    if e.task is not None and e.task.GRADER != e.register.grader:
        yield Note(f"{e.task.GRADER} is installed here")
