from __future__ import annotations

from collections.abc import Iterator

from cask_eval.canonical import digest
from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence, protocol_of, raw_digests


@check("V01", "protocol as registered", "register")
def v01(e: Evidence) -> Iterator[str]:
    """The file on disk, the document inside the registration and both locked digests say the same."""
    assert e.register
    if digest(e.register.protocol) != e.register.protocol_digest:
        yield "the protocol inside the register event does not have the digest that the event locks"
    if e.protocol is None:
        yield e.why("protocol")
    elif e.protocol.document() != e.register.protocol:
        yield "the protocol inside the register event is not written out in full"
    elif e.protocol.study != e.study:
        yield f"the registered protocol is of study {e.protocol.study!r}, the event of {e.study!r}"

    if e.protocol_file is None:
        yield Skip(f"the protocol file: {e.why('protocol_file')}")
        return
    path = e.register.protocol_path
    if e.register.protocol_raw not in raw_digests(e.protocol_file):
        yield f"{path} is not the file that was registered"
    found = protocol_of(e.protocol_file, path)
    if isinstance(found, str):
        yield found
    elif digest(found.document()) != e.register.protocol_digest:
        yield f"{path} says something else than what was registered"
