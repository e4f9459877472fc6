from __future__ import annotations

from collections.abc import Iterator

from cask_eval.ledger.events import PackageLock
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V14", "method code unchanged while the study ran", "register", "dev_run", "close")
def v14(e: Evidence) -> Iterator[str]:
    """The method packages had one digest at registration, after the dev run and at the end; so they had in every dev
    run that was put aside."""
    assert e.register and e.dev_run and e.close
    if not e.register.methods:
        yield "the registration locks no method package"
    for era in e.state.superseded:
        if era.dev_run:
            event, run = era.dev_run
            yield from _compared(era.register[1].methods, f"the dev_run on line {event.seq + 1}", run.methods)
    yield from _compared(e.register.methods, "dev_run", e.dev_run.methods)
    yield from _compared(e.register.methods, "close", e.close.methods)


def _compared(locked: list[PackageLock], event: str, found: list[PackageLock]) -> Iterator[str]:
    there, here = ({p.name: p for p in packages} for packages in (locked, found))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            yield f"{name} at {event} is not the package that was registered"
