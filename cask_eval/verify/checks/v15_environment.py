from __future__ import annotations

from collections.abc import Iterator

from cask_eval.canonical import digest
from cask_eval.ledger.amend import differences
from cask_eval.verify.check import check
from cask_eval.verify.evidence import Evidence


@check("V15", "environment and models unchanged", "register", "protocol", "consume", "close")
def v15(e: Evidence) -> Iterator[str]:
    """Python, packages, device and toolkit were the same from registration to close; each model is locked once."""
    assert e.register and e.protocol and e.consume and e.close
    for event, environment in (("consume", e.consume.environment), ("close", e.close.environment)):
        for c in differences(e.register.environment.model_dump(), environment.model_dump()):
            yield f"{c.field} is {c.after or 'gone'} at {event}, registered was {c.before or 'none'}"
    if [(m.name, m.id) for m in e.register.models] != [(m.name, m.id) for m in e.protocol.models]:
        yield "the locked models are not the protocol's"
    dtypes = {m.name: m.dtype for m in e.protocol.models}
    for lock in e.register.models:
        if lock.name in dtypes and lock.digest != digest({"files": lock.files, "dtype": dtypes[lock.name]}):
            yield f"{lock.name}: the model's digest is not that of its files and dtype"
