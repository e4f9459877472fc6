from __future__ import annotations

import itertools
from collections.abc import Iterator

from cask_eval.protocol.keys import is_step
from cask_eval.records.model import ChainRecord, Record
from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.replays import references, replay_faults


@check("V12", "statuses consistent", "register", "protocol", "dev", "heldout")
def v12(e: Evidence) -> Iterator[str]:
    """A failed trial says why, has no output and is wrong; any other has output, account and no failure; truncated
    means at the length cap, finished that a stop token came last. A replay puts out what its reference did, and it
    alone has fidelity."""
    assert e.register and e.protocol and e.dev and e.heldout
    cap = e.protocol.generation.max_new_tokens
    of_model = {m.name: set(m.stop_ids) for m in e.register.models}
    cells = [*e.protocol.cells, *e.protocol.reference_cells]
    stops = {cell.name: of_model.get(cell.model, set()) for cell in cells}
    given = references(e)
    failed = 0
    for r in itertools.chain(e.dev.records, e.heldout.records):
        failed += r.status == "failed" and not is_step(r.config)
        own = stops.get(r.cell, set())
        chains = (f"chain {i}: {what}" for i, c in enumerate(r.chains) for what in _chain(c, cap, own))
        for what in (*_faults(r, cap), *_ending(r, own), *chains, *replay_faults(e, r, given)):
            yield f"{r.phase}/{r.cell}/{r.arm}/{r.problem}/{r.sample} ({r.status}): {what}"
    if failed:
        rule = "the worst" if e.protocol.fidelity else "wrong"
        yield Note(f"{failed} trials failed and count as {rule}; that they failed is the author's word")


def _chain(c: ChainRecord, cap: int, stops: set[int]) -> Iterator[str]:
    yield from _ending(c, stops)
    if not c.output_ids:
        yield "has no output"
    if len(c.output_ids) > cap or (c.status == "truncated" and len(c.output_ids) != cap):
        yield f"{c.status} at {len(c.output_ids)} tokens, but the cap is {cap}"


def _ending(r: Record | ChainRecord, stops: set[int]) -> Iterator[str]:
    """A trial is finished if, and only if, its last token and no other is a stop token of its model."""
    if r.output_ids and r.status != "failed":
        if (r.output_ids[-1] in stops) != (r.status == "finished"):
            yield "its last token is " + ("a stop token" if r.output_ids[-1] in stops else "no stop token of the model")
        if stops.intersection(r.output_ids[:-1]):
            yield "it goes on after a stop token"


def _faults(r: Record, cap: int) -> Iterator[str]:
    if len(r.output_ids) != r.output_tokens:
        yield f"{r.output_tokens} tokens, but {len(r.output_ids)} token ids"
    if r.output_tokens > cap:
        yield f"{r.output_tokens} tokens, more than the cap of {cap}"
    if r.status == "failed":
        if r.failure is None:
            yield "failed without a failure"
        if r.grade.correct or r.grade.extracted is not None:
            yield "failed, but graded"
        if r.output or r.output_ids:
            yield "failed, but with output"
        if r.residency is not None or r.kept_min is not None or r.kept_max is not None or r.chains:
            yield "failed, but with a residency account"
        return
    if r.failure is not None:
        yield f"has a failure ({r.failure.kind}) all the same"
    if r.residency is None:
        yield "has no residency account"
    if r.output_tokens == 0:
        yield "has no output"
    if r.status == "truncated" and r.output_tokens != cap:
        yield f"cut at {r.output_tokens} tokens, but the cap is {cap}"
