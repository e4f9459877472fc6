"""Which references are replayed together: as many as their full-cache logits leave memory for. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cask_eval.replay.records import Reference

MOST = 64


def blocks(references: Sequence[Reference], token_bytes: int, limit: int) -> Iterator[list[Reference]]:
    """Consecutive references whose logits, of `token_bytes` a token, take up at most `limit` bytes, and at most 64;
    one alone may take more."""
    block: list[Reference] = []
    size = 0
    for reference in references:
        more = len(reference.output_ids) * token_bytes
        if block and (size + more > limit or len(block) == MOST):
            yield block
            block, size = [], 0
        block.append(reference)
        size += more
    if block:
        yield block
