"""What trials that were executed again say about a study."""

from __future__ import annotations

from collections.abc import Sequence

from cask_eval.verify.check import Rerun

#: So many equal trials, or all there are, leave at most 5 % that may be other than they were run, with 95 % confidence.
ENOUGH = 59


def judged(done: int, total: int, differ: Sequence[str], machine: Sequence[str], subject: Sequence[str]) -> Rerun:
    """`done` trials drawn at random from `total`; `differ` came out otherwise. The machine is another than the
    registered one in what `machine` names, and what was executed in what `subject` names. A difference is a fault where
    the machine is the registered one; elsewhere processors and libraries round otherwise, a near-tie may go the other
    way, and nothing follows. Equal trials count as run by the reviewer only where models, methods, task and splits are
    the registered ones."""
    foreign = [f"{name} is not what was registered" for name in (*machine, *subject)]
    said = f"{done - len(differ)} of {done} trials drawn from {total} came out the same"
    if differ:
        if foreign:
            return Rerun.of("not_checked", [*foreign, f"so nothing follows from this: {said}", *differ])
        return Rerun.of("fail", [said, *differ])
    if not done:
        return Rerun.of("not_checked", ["no trial left an output"])
    enough = done >= min(ENOUGH, total) and not subject
    bound = f"{said}, so at most {1 - 0.05 ** (1 / done):.1%} of all are otherwise, with 95 % confidence"
    more = [] if enough or subject else [f"evidence level L3 takes {min(ENOUGH, total)}"]
    return Rerun.of("pass", [bound, *more, *foreign], enough)
