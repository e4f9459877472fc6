from __future__ import annotations

from collections.abc import Iterator

from cask_eval.canonical import digest, digest_text
from cask_eval.verify.check import Skip, check
from cask_eval.verify.evidence import Evidence, protocol_of, raw_digests


@check("V01", "protocol as registered", "register")
def v01(e: Evidence) -> Iterator[str]:
    """The file on disk, the document inside the registration and both locked digests say the same; the prompt file is
    the one whose digest is locked."""
    assert e.register
    if digest(e.register.protocol) != e.register.protocol_digest:
        yield "the protocol inside the register event does not have the digest that the event locks"
    if e.protocol is None:
        yield e.why("protocol")
    elif e.protocol.document() != e.register.protocol:
        yield "the protocol inside the register event is not written out in full"
    elif e.protocol.study != e.study:
        yield f"the registered protocol is of study {e.protocol.study!r}, the event of {e.study!r}"

    yield from _prompt(e)
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


def _prompt(e: Evidence) -> Iterator[str]:
    """How the models were asked. Studies without a prompt file, and those older than the lock, need none."""
    assert e.register
    asked, lock = e.protocol.prompt if e.protocol else None, e.register.prompt
    if asked is None:
        return
    if lock is None or (lock.file is None) != (asked.file is None):
        yield "the protocol has a prompt file and the registration locks none" if asked.file else (
            "the registration does not lock how the models are asked"
        )
        return
    if asked.form == "chat":
        for model in e.register.models:
            if model.chat_template is None:
                yield f"{model.name}: asked through a chat template, and the registration locks none"
    if sorted(lock.tokens) != sorted(m.name for m in e.register.models):
        yield "the registration does not lock every model's prompts"
    if asked.file and e.prompt_file is None:
        yield Skip(f"the prompt file: {e.why('prompt_file')}")
    elif asked.file and digest_text(e.prompt_file) != lock.file:
        yield f"{asked.file} is not the prompt file that was registered"
