from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from decimal import Decimal

from cask_eval.protocol.keys import trial_seed
from cask_eval.verify.check import Note, Skip, check
from cask_eval.verify.evidence import Evidence


@check("V06", "seeds drawn from the registration", "registration", "protocol", "dev", "heldout")
def v06(e: Evidence) -> Iterator[str]:
    """Each trial's seed follows from the registration's hash, and from its time stamp where the protocol asks for one,
    so sampled outputs cannot be older."""
    assert e.registration and e.protocol and e.dev and e.heldout
    if e.seed_root is None:
        yield "the protocol says `anchor: registration`, but the ledger holds no time stamp over the registration"
        return
    yield from _beacons(e)
    for r in itertools.chain(e.dev.rows, e.heldout.rows):
        phase, cell, _, _, problem, sample = r.key
        if r.seed != trial_seed(e.seed_root, cell, problem, sample, phase=phase):
            yield f"{r.where}: the seed is not the registration's"
    if (seeding := e.state.seeding) and seeding[0].hash not in {s.anchor.hash for s in e.anchors.stamps}:
        yield Skip("the stamp that the seeds depend on is under no root that is trusted here, so it dates no output")
    if Decimal(e.protocol.generation.temperature) == 0:
        yield Note("decoding is greedy: its outputs do not depend on the seed, so this does not date them")


def _beacons(e: Evidence) -> Iterator[str]:
    """Whether each time stamp has the beacon that its event states; whose signature it is, V05 asks."""
    if not e.state.anchors:
        return
    # Most studies have none, and cryptography is slow to load.
    from cask_eval.anchor.token import beacon

    for event, anchor in e.state.anchors:
        if beacon(base64.b64decode(anchor.token)) != anchor.beacon:
            yield f"line {event.seq + 1}: the beacon is not that of the time stamp"
