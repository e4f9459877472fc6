from __future__ import annotations

from collections.abc import Iterator

from cask_eval.canonical import digest
from cask_eval.ledger.events import Environment
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V15", "environment and models unchanged", "register", "protocol", "consume", "close")
def v15(e: Evidence) -> Iterator[str]:
    """Python, packages, device and toolkit were the same from registration to close; each model is locked once."""
    assert e.register and e.protocol and e.consume and e.close
    for event, environment in (("consume", e.consume.environment), ("close", e.close.environment)):
        yield from _differences(event, e.register.environment, environment)
    if [(m.name, m.id) for m in e.register.models] != [(m.name, m.id) for m in e.protocol.models]:
        yield "the locked models are not the protocol's"
    dtypes = {m.name: m.dtype for m in e.protocol.models}
    for lock in e.register.models:
        if lock.name in dtypes and lock.digest != digest({"files": lock.files, "dtype": dtypes[lock.name]}):
            yield f"{lock.name}: the model's digest is not that of its files and dtype"


def _differences(event: str, before: Environment, after: Environment) -> Iterator[str]:
    old, new = before.model_dump(), after.model_dump()
    old |= old.pop("packages")
    new |= new.pop("packages")
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} is {new.get(name)} at {event}, registered was {old.get(name)}"
