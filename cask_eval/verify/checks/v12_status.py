from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from cask_eval.records.model import Record
from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence


@check("V12", "statuses consistent", "protocol", "dev", "heldout")
def v12(e: Evidence) -> Iterator[str]:
    """A failed trial says why, has no output and is wrong; any other has output, account and no failure; truncated
    means at the length cap."""
    assert e.protocol and e.dev and e.heldout
    cap = e.protocol.generation.max_new_tokens
    records = (*e.dev.records, *e.heldout.records)
    stops = _stops(records, cap)
    failed = 0
    for r in records:
        failed += r.status == "failed"
        for what in (*_faults(r, cap), *_relabelled(r, cap, stops[_model(r)])):
            yield f"{r.phase}/{r.cell}/{r.arm}/{r.problem}/{r.sample} ({r.status}): {what}"
    if failed:
        yield Note(f"{failed} trials failed and count as wrong; that they failed is the author's word")


def _stops(records: Iterable[Record], cap: int) -> dict[str, set[int]]:
    """By model, the token ids that trials ended with before they reached the cap: only a stop id does that."""
    stops: dict[str, set[int]] = defaultdict(set)
    for r in records:
        if r.status == "finished" and r.output_ids and len(r.output_ids) < cap:
            stops[_model(r)].add(r.output_ids[-1])
    return stops


def _model(r: Record) -> str:
    return r.cell.partition("/")[0]


def _relabelled(r: Record, cap: int, stops: set[int]) -> Iterator[str]:
    """A trial that was cut off is not finished, which would hide it from the limit on cut-off trials."""
    if stops and r.status == "finished" and len(r.output_ids) >= cap and r.output_ids[-1] not in stops:
        yield f"stopped at the cap of {cap} tokens without a stop token, so it was truncated"


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
        if r.residency is not None or r.kept_min is not None or r.kept_max is not None:
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
