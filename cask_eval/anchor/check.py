"""What the anchors of a study prove. A pure function of the events and the trusted roots; no network, no clock.

A token over an event shows that the event existed by the token's time T, and through the chain everything before it.
An anchor is a line of the ledger, so everything after that line was written after T. An event is thereby bracketed:
not before the latest T in front of it, not after the earliest T over it or over anything behind it. The times that the
events state themselves are only their author's word; they are compared with the brackets.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.x509 import Certificate

from cask_eval.anchor import token as tokens
from cask_eval.anchor.errors import AnchorError, UnknownRootError
from cask_eval.anchor.token import SKEW, Token
from cask_eval.ledger.events import Anchor, Event
from cask_eval.ledger.log import TIME
from cask_eval.ledger.state import StudyState

#: The events that must be anchored for a study to count as anchored, in their order (`milestones`).
MILESTONES = ("register", "consume", "close")
#: A stamp shows that its event came before another one only if it was entered before that.
_FOLLOWED_BY = {"register": "consume", "consume": "close"}
_TOO_LATE = {
    "register": "the held-out run began, so nothing shows that the registration was stamped first",
    "consume": "the run was closed, so nothing shows when it began; `cask-eval confirm --tsa URL` stamps in time",
}
#: Each is a signature to verify.
MAX_ANCHORS = 200


@dataclass(frozen=True)
class Stamp:
    """One anchor that holds: the event it is over, the anchor event itself, and the token."""

    event: Event
    anchor: Event
    token: Token


@dataclass(frozen=True)
class Bracket:
    """When an event was written, as third parties attest it; None where nobody does. `stated` is its own word."""

    event: Event
    stated: datetime
    not_before: datetime | None
    not_after: datetime | None


@dataclass(frozen=True)
class Findings:
    """`faults` contradict the evidence; `gaps` say what the anchors do not show, though nothing is wrong; `strange` are
    stamps under roots that the reader does not trust, which prove nothing and take nothing away; `notes` are the
    attested times. `brackets` maps each milestone that the study has reached to its bracket."""

    stamps: tuple[Stamp, ...]
    brackets: dict[str, Bracket]
    faults: tuple[str, ...]
    gaps: tuple[str, ...]
    strange: tuple[str, ...] = ()

    @property
    def anchored(self) -> bool:
        """Evidence level L2: every milestone stamped, in order, and nothing against it."""
        return not self.faults and not self.gaps

    @property
    def notes(self) -> list[str]:
        """One line per milestone with an attested time."""
        return [_note(b) for b in self.brackets.values() if b.not_before or b.not_after]


def check_anchors(events: Sequence[Event], study: str, roots: Sequence[Certificate]) -> Findings:
    """Verify every anchor of `study` and compare their times.

    `events` are those of the whole ledger in their order, and their chain is taken for granted (V03 checks it). Nothing
    is raised for what the ledger holds.
    """
    place = {event.hash: i for i, event in enumerate(events)}
    anchors = [e for e in events if e.study == study and e.event == "anchor"]
    if len(anchors) > MAX_ANCHORS:
        return Findings((), {}, (f"the study has {len(anchors)} anchors, more than {MAX_ANCHORS}",), ())
    stamps: list[Stamp] = []
    faults: list[str] = []
    strange: list[str] = []
    for anchor in anchors:
        payload = Anchor.model_validate(anchor.payload)
        where = f"line {anchor.seq + 1}, the stamp over line {payload.seq + 1}"
        try:
            stamps.append(_stamp(events, place, anchor, payload, roots))
        except UnknownRootError as error:
            strange.append(f"{where}: {error}")
        except (AnchorError, ValueError) as error:
            faults.append(f"{where}: {error}")
    faults += _contradictions(place, stamps)
    reached = milestones(events, study)
    gaps = _gaps(study, reached, place, stamps)
    brackets = {kind: _bracket(event, place, stamps) for kind, event in reached.items()}
    return Findings(tuple(stamps), brackets, tuple(faults), tuple(gaps), tuple(strange))


def milestones(events: Sequence[Event], study: str) -> dict[str, Event]:
    """The milestones that a study has reached. Its `register` is the event that stands for the registration when the
    held-out split is consumed: the register event, or the last amendment before that."""
    state = StudyState.of(events, study)
    return {kind: pair[0] for kind in MILESTONES if (pair := getattr(state, kind))}


def stamped(events: Sequence[Event], study: str) -> set[str]:
    """The hashes that the study's anchors name, verified or not."""
    return {e.payload["hash"] for e in events if e.study == study and e.event == "anchor"}


def _stamp(
    events: Sequence[Event], place: dict[str, int], anchor: Event, payload: Anchor, roots: Sequence[Certificate]
) -> Stamp:
    """The anchor, verified. Raises AnchorError, or ValueError with what is wrong."""
    at = place.get(payload.hash)
    if at is None or at >= place[anchor.hash]:
        raise ValueError("names no earlier event of this ledger")
    event = events[at]
    if event.study != anchor.study or event.seq != payload.seq or event.event == "anchor":
        raise ValueError(f"names {payload.hash}, which is not an event of this study at that line")
    token = tokens.verify(base64.b64decode(payload.token, validate=True), payload.hash, roots)
    if (payload.gen_time, payload.tsa) != (token.gen_time.strftime(TIME), token.tsa):
        raise ValueError(
            f"states {payload.gen_time} by {payload.tsa}, but the token says {token.gen_time.strftime(TIME)} "
            f"by {token.tsa}"
        )
    if payload.beacon != token.beacon:
        raise ValueError("states another beacon than the token's")
    return Stamp(event, anchor, token)


def _contradictions(place: dict[str, int], stamps: list[Stamp]) -> Iterator[str]:
    """What cannot be if the times are right, with `SKEW` for the clocks of honest people."""
    for s in stamps:
        when, line = s.token.gen_time.strftime(TIME), s.event.seq + 1
        if time_of(s.event) > s.token.gen_time + SKEW:
            yield (
                f"line {line} states {s.event.time}, but it existed at {when}, when it was stamped; "
                "the author's clock was wrong"
            )
        after = place[s.anchor.hash]
        # Times do not go back along the ledger (V25), so the first of the lines behind a stamp speaks for all.
        if time_of(s.anchor) < s.token.gen_time - SKEW:
            yield (
                f"line {s.anchor.seq + 1} states {s.anchor.time}, but it holds a stamp of {when}; "
                "it and what follows are back-dated, or the author's clock was wrong"
            )
        for other in stamps:
            if place[other.event.hash] >= after and other.token.gen_time < s.token.gen_time - SKEW:
                yield (
                    f"line {other.event.seq + 1} was stamped at {other.token.gen_time.strftime(TIME)}, but follows "
                    f"line {s.anchor.seq + 1}, which holds a stamp of {when}"
                )


def _gaps(study: str, reached: dict[str, Event], place: dict[str, int], stamps: list[Stamp]) -> Iterator[str]:
    """What an anchored study would show and this one does not."""
    earliest: dict[str, datetime] = {}
    for kind in MILESTONES:
        if kind not in reached:
            yield f"there is no {kind} event yet"
            continue
        event = reached[kind]
        own = [s for s in stamps if s.event.hash == event.hash]
        if not own:
            yield f"{event.event} (line {event.seq + 1}) is not stamped; `cask-eval anchor {study} --tsa URL` still can"
            continue
        earliest[kind] = min(s.token.gen_time for s in own)
        entered = min(place[s.anchor.hash] for s in own)
        then = _FOLLOWED_BY.get(kind)
        if then in reached and entered > place[reached[then].hash]:
            yield f"the stamp over {event.event} was entered after {_TOO_LATE[kind]}"
    known = list(earliest)
    for before, after in zip(known, known[1:], strict=False):
        if earliest[after] < earliest[before]:
            yield f"{after} was stamped before {before} was, so the stamps do not show their order"


def _bracket(event: Event, place: dict[str, int], stamps: list[Stamp]) -> Bracket:
    at = place[event.hash]
    before = [s.token.gen_time for s in stamps if place[s.anchor.hash] < at]
    after = [s.token.gen_time for s in stamps if place[s.event.hash] >= at]
    return Bracket(event, time_of(event), max(before, default=None), min(after, default=None))


def _note(b: Bracket) -> str:
    said = [f"not before {b.not_before.strftime(TIME)}"] if b.not_before else []
    said += [f"not after {b.not_after.strftime(TIME)}"] if b.not_after else []
    late = b.not_after - b.stated if b.not_after else None
    tail = f", {_span(late)} after the time that it states" if late and late > SKEW else ""
    return f"{b.event.event} was written {' and '.join(said)}{tail}"


def _span(delta: timedelta) -> str:
    minutes = int(delta.total_seconds()) // 60
    for size, word in ((60 * 24, "days"), (60, "hours")):
        if minutes >= 2 * size:
            return f"{minutes // size} {word}"
    return f"{minutes} minutes"


def time_of(event: Event) -> datetime:
    """The time that an event states."""
    return datetime.strptime(event.time, TIME).replace(tzinfo=UTC)
