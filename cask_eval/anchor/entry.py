"""Which events to stamp, and entering a token in the ledger."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography.x509 import Certificate

from cask_eval.anchor import token as tokens
from cask_eval.anchor.check import check_anchors, milestones, stamped
from cask_eval.anchor.errors import AnchorError, MismatchError
from cask_eval.anchor.token import Token
from cask_eval.errors import StateError
from cask_eval.ledger.events import Anchor, Event
from cask_eval.ledger.log import TIME, Ledger, seal
from cask_eval.ledger.state import guard


def targets(events: Sequence[Event], study: str, kinds: Sequence[str] = ()) -> list[Event]:
    """The study's last event of each of these kinds, in the ledger's order; without kinds, every milestone that no
    anchor names yet. Raises StateError when the study has no event of a kind."""
    if not kinds:
        done = stamped(events, study)
        return [e for e in milestones(events, study).values() if e.hash not in done]
    own = {e.event: e for e in events if e.study == study}
    if missing := [kind for kind in kinds if kind not in own]:
        raise StateError(
            f"study {study!r} has no {missing[0]} event to stamp; it has {', '.join(k for k in own if k != 'anchor')}"
        )
    return sorted((own[k] for k in set(kinds)), key=lambda e: e.seq)


def covered(events: Sequence[Event], token: bytes) -> Event:
    """The event that a token is over. Raises MismatchError when the ledger has no such event."""
    hash = tokens.imprint(token)
    for event in events:
        if event.hash == hash and event.event != "anchor":
            return event
    raise MismatchError(
        f"the time stamp is over {hash}, which is no event of this ledger; "
        "write the request again with `cask-eval anchor --request FILE` and have that one stamped"
    )


def enter(
    ledger: Ledger, event: Event, token: bytes, roots: Sequence[Certificate], *, nonce: int | None = None
) -> tuple[Event, Token]:
    """Verify a token over `event` and append it. Returns the anchor event and what the token says.

    Nothing is appended that `check_anchors` would call a fault, because nothing could take it back: a token that does
    not hold, one that is there already, or one whose time contradicts the ledger's. Raises AnchorError, StateError or
    LedgerError.
    """
    found = tokens.verify(token, event.hash, roots, nonce=nonce)
    payload = Anchor(
        seq=event.seq,
        hash=event.hash,
        tsa=found.tsa,
        gen_time=found.gen_time.strftime(TIME),
        beacon=found.beacon,
        token=base64.b64encode(token).decode(),
    )
    now = datetime.now(UTC)

    def allow(events: list[Event]) -> None:
        guard(event.study, "anchor")(events)
        if any(e.event == "anchor" and e.payload["token"] == payload.token for e in events):
            raise StateError(f"the ledger has this time stamp over the {event.event} event already")
        line = seal(len(events), events[-1].hash, event.study, "anchor", now.strftime(TIME), payload.model_dump())
        before = check_anchors(events, event.study, roots).faults
        after = check_anchors([*events, line], event.study, roots).faults
        if new := [fault for fault in after if fault not in before]:
            raise AnchorError(f"the time stamp was not entered: {new[0]}; set this machine's clock right")

    return ledger.append(event.study, "anchor", payload, now=now, allow=allow), found
