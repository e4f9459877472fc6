from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from cask_eval.protocol.keys import trial_seed
from cask_eval.verify.check import Note, check
from cask_eval.verify.evidence import Evidence


@check("V06", "seeds drawn from the registration", "registration", "protocol", "dev", "heldout")
def v06(e: Evidence) -> Iterator[str]:
    """Each trial's seed follows from the registration's hash, so sampled outputs cannot be older than it."""
    assert e.registration and e.protocol and e.dev and e.heldout
    for r in (*e.dev.records, *e.heldout.records):
        if r.seed != trial_seed(e.registration, r.cell, r.problem, r.sample, phase=r.phase):
            yield f"{r.phase}/{r.cell}/{r.arm}/{r.problem}/{r.sample}: the seed is not the registration's"
    if Decimal(e.protocol.generation.temperature) == 0:
        yield Note("decoding is greedy: its outputs do not depend on the seed, so this does not date them")
