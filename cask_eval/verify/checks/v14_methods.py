from __future__ import annotations

from collections.abc import Iterator

from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V14", "method code unchanged", "register", "dev_run", "close")
def v14(e: Evidence) -> Iterator[str]:
    """The method packages had one digest at registration, after the dev run and at the end."""
    assert e.register and e.dev_run and e.close
    locked = {p.name: p for p in e.register.methods}
    if not locked:
        yield "the registration locks no method package"
    for event, packages in (("dev_run", e.dev_run.methods), ("close", e.close.methods)):
        found = {p.name: p for p in packages}
        for name in sorted(locked.keys() | found.keys()):
            if locked.get(name) != found.get(name):
                yield f"{name} at {event} is not the package that was registered"
