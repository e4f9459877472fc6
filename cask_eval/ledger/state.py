"""What the ledger says about a study, and which event may follow. Pure functions of the events.

unregistered ──register──▶ registered ──dev_run, select──▶ tuned ──consume──▶ consumed ──close──▶ closed

An amendment before `consume` leads back to registered; a later one leaves the state and makes the study exploratory.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cask_eval.canonical import digest
from cask_eval.errors import CaskError, ConsumedError, StateError
from cask_eval.ledger.events import (
    PAYLOADS,
    Amend,
    Analysis,
    Anchor,
    Close,
    Consume,
    DevRun,
    Event,
    Records,
    RecordsCommit,
    Register,
    Select,
)

Label = Literal["confirmatory", "exploratory"]

STATES = ("unregistered", "registered", "tuned", "consumed", "closed")


@dataclass(frozen=True)
class Era:
    """A time under one registration: what was locked, the dev run that was finished under it, and the amendment that
    ended it, None for the present one."""

    register: tuple[Event, Register]
    dev_run: tuple[Event, DevRun] | None
    ended: tuple[Event, Amend] | None = None

    @property
    def records(self) -> RecordsCommit | None:
        """The dev records that are committed to, finished or as far as they had come when the study was amended."""
        if self.dev_run:
            return self.dev_run[1].records
        return self.ended[1].dev if self.ended else None


@dataclass(frozen=True)
class StudyState:
    """One study's events, each as (event, payload). Where the ledger has an event twice, the first counts.

    register: the event that the trials refer to, which is the registration or the last amendment before `consume`, and
    what is locked now. superseded: what amendments have put aside. analysis: the last one; an amendment after `consume`
    asks for another.
    """

    study: str
    register: tuple[Event, Register] | None = None
    amendments: tuple[tuple[Event, Amend], ...] = ()
    superseded: tuple[Era, ...] = ()
    dev_run: tuple[Event, DevRun] | None = None
    select: tuple[Event, Select] | None = None
    consume: tuple[Event, Consume] | None = None
    sessions: tuple[tuple[Event, Records], ...] = ()
    close: tuple[Event, Close] | None = None
    analysis: tuple[Event, Analysis] | None = None
    anchors: tuple[tuple[Event, Anchor], ...] = ()

    @classmethod
    def of(cls, events: Iterable[Event], study: str) -> StudyState:
        """The state of `study` after `events`; events of other studies are passed over."""
        fold = _Fold(study)
        for event in events:
            fold.add(event)
        return fold.state()

    @property
    def eras(self) -> tuple[Era, ...]:
        """One for each registration that was in force before `consume`, the present one last."""
        return (*self.superseded, Era(self.register, self.dev_run)) if self.register else ()

    @property
    def name(self) -> str:
        """unregistered, registered, tuned, consumed or closed."""
        if self.register is None:
            return "unregistered"
        if self.close:
            return "closed"
        if self.consume:
            return "consumed"
        if self.select:
            return "tuned"
        return "registered"

    @property
    def revision(self) -> int:
        """How many amendments came before the held-out split was consumed."""
        return sum(self.consume is None or event.seq < self.consume[0].seq for event, _ in self.amendments)

    @property
    def late(self) -> tuple[tuple[Event, Amend], ...]:
        """The amendments that came after it."""
        return self.amendments[self.revision :]

    @property
    def label(self) -> Label:
        """What the study's results may be called."""
        exploratory = self.late or (self.consume and self.consume[1].exploratory)
        return "exploratory" if exploratory else "confirmatory"

    @property
    def seeding(self) -> tuple[Event, Anchor] | None:
        """The first time stamp over the registration, where the protocol wants the seeds to depend on it."""
        assert self.register
        event, locked = self.register
        if locked.protocol.get("anchor", "none") == "none":
            return None
        return next((pair for pair in self.anchors if pair[1].hash == event.hash), None)

    @property
    def seeded(self) -> bool:
        """Whether all that seeds are derived from is there."""
        assert self.register
        return self.register[1].protocol.get("anchor", "none") == "none" or self.seeding is not None

    def seed_root(self) -> str:
        """What the seeds of all trials are derived from: the registration's hash, together with the beacon of its
        first time stamp where the protocol asks for one. Raises StateError while that is missing."""
        assert self.register
        event = self.register[0]
        if not self.seeded:
            raise StateError(
                f"the protocol of {self.study!r} says `anchor: registration`, so nothing runs before the registration "
                f"is time-stamped; run `cask-eval anchor {self.study} --tsa URL`"
            )
        return digest({"registration": event.hash, "beacon": self.seeding[1].beacon}) if self.seeding else event.hash


class _Fold:
    """A study's state, event by event. Any order can be followed; which are allowed is `require`'s question."""

    def __init__(self, study: str):
        self.study = study
        self.found: dict[str, Any] = {}
        self.several: dict[str, list] = {n: [] for n in ("sessions", "anchors", "amendments", "superseded")}

    def add(self, event: Event) -> None:
        if event.study != self.study or event.event not in PAYLOADS:
            return
        found, several = self.found, self.several
        pair = (event, PAYLOADS[event.event].model_validate(event.payload))
        if event.event == "records":
            several["sessions"].append(pair)
        elif event.event == "anchor":
            several["anchors"].append(pair)
        elif event.event != "amend":
            found.setdefault(event.event, pair)
        elif "consume" in found:
            several["amendments"].append(pair)
            if "register" in found:
                found["register"] = (found["register"][0], pair[1])
            found.pop("analysis", None)
        else:
            several["amendments"].append(pair)
            run = found.pop("dev_run", None)
            if "register" in found:
                several["superseded"].append(Era(found["register"], run, pair))
                found["register"] = pair
            found.pop("select", None)

    def state(self) -> StudyState:
        return StudyState(self.study, **{n: tuple(pairs) for n, pairs in self.several.items()}, **self.found)


def unfolded(events: Iterable[Event], study: str) -> Iterator[tuple[StudyState, Event]]:
    """Each event of the study with the state before it."""
    fold = _Fold(study)
    for event in events:
        if event.study == study:
            yield fold.state(), event
            fold.add(event)


def require(state: StudyState, kind: str) -> None:
    """Pass if an event of `kind` may follow. Raises ConsumedError when the held-out split is spent, StateError
    otherwise, with what to do instead."""
    name, study = state.name, state.study
    if kind == "register":
        _require(
            name == "unregistered",
            f"study {study!r} is registered already and a registration cannot change; give the new protocol another "
            "`study:` name, or put it in the place of the old one for everybody to see: `cask-eval amend PROTOCOL "
            f"--reason TEXT`. As it is registered, {_next(state)}",
        )
    elif name == "unregistered":
        raise StateError(f"study {study!r} is not registered; run `cask-eval register PROTOCOL` first")
    elif kind in ("dev_run", "select"):
        _not_spent(state)
        _require(name == "registered", f"study {study!r} is tuned already; {_next(state)}")
        if kind == "dev_run":
            _require(state.dev_run is None, f"study {study!r} has its development run already; {_next(state)}")
        else:
            _require(state.dev_run is not None, f"study {study!r} has no development run yet; {_next(state)}")
    elif kind == "consume":
        _not_spent(state)
        _require(name == "tuned", f"study {study!r} is not tuned; {_next(state)}")
    elif kind in ("records", "close"):
        if name == "closed":
            raise ConsumedError(f"study {study!r} is closed and takes no more records; {_next(state)}")
        _require(
            name == "consumed",
            f"study {study!r} has not begun its held-out run (it is {name}); {_next(state)}",
        )
        if kind == "close":
            _require(
                bool(state.sessions) and state.sessions[-1][1].complete,
                f"study {study!r} has no complete held-out session; {_next(state)}",
            )
    elif kind == "analysis":
        _require(
            name == "closed",
            f"study {study!r} is {name}; an analysis before the records are closed would be an interim look; "
            + _next(state),
        )
        _require(state.analysis is None, f"study {study!r} has its analysis already; {_next(state)}")
    elif kind not in ("amend", "anchor"):
        raise StateError(f"{kind!r} is no kind of event; use one of {', '.join(PAYLOADS)}")


def guard(study: str, kind: str, registration: str | None = None) -> Callable[[list[Event]], None]:
    """`require` in the form that `Ledger.append` takes as `allow`. `registration`: the hash that the work was done
    under; another process may have amended the study meanwhile."""

    def allow(events: list[Event]) -> None:
        state = StudyState.of(events, study)
        require(state, kind)
        if registration and state.register and state.register[0].hash != registration:
            raise StateError(f"study {study!r} was amended while this ran; {_next(state)} again")

    return allow


def studies(events: Iterable[Event]) -> dict[str, StudyState]:
    """Every study of the ledger, in the order of first mention."""
    grouped: dict[str, list[Event]] = {}
    for event in events:
        grouped.setdefault(event.study, []).append(event)
    return {study: StudyState.of(own, study) for study, own in grouped.items()}


def pick(events: Iterable[Event], name: str | None, states: Collection[str]) -> str:
    """The study that a command is about: `name`, or the only study in one of `states`.

    Raises ConsumedError when the held-out split is spent and the command would need it fresh; StateError when no
    study fits or several do, naming them and the remedy.
    """
    found = studies(events)
    wanted = " or ".join(s for s in STATES if s in states)
    if name is not None:
        _known(found, name)
        if found[name].name not in states:
            raise _wrong(found[name], states, wanted)
        return name
    fitting = [study for study, state in found.items() if state.name in states]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise StateError(f"several studies are {wanted}: {', '.join(fitting)}; name the one you mean")
    if not found:
        raise StateError("the ledger has no study; run `cask-eval register PROTOCOL` first")
    if len(found) == 1:
        raise _wrong(next(iter(found.values())), states, wanted)
    spent = "closed" not in states and all(state.consume for state in found.values())
    error = ConsumedError if spent else StateError
    raise error(f"no study is {wanted}: the ledger has {_list(found.values())}; bring one there or name another")


def known(events: Iterable[Event], name: str) -> None:
    """Raises StateError when the ledger has no study of this name, with what it has."""
    _known(studies(events), name)


def _known(found: dict[str, StudyState], name: str) -> None:
    if name in found:
        return
    if near := difflib.get_close_matches(name, found, n=1):
        hint = f"did you mean {near[0]!r}?"
    elif found:
        hint = f"it has {_list(found.values())}"
    else:
        hint = "it is empty; run `cask-eval register PROTOCOL` first"
    raise StateError(f"the ledger has no study {name!r}; {hint}")


def _wrong(state: StudyState, states: Collection[str], wanted: str) -> CaskError:
    # What is done with closed studies needs no fresh split.
    kind = ConsumedError if state.consume and "closed" not in states else StateError
    return kind(f"study {state.study!r} is {state.name}, not {wanted}; {_next(state)}")


def _not_spent(state: StudyState) -> None:
    if state.consume:
        raise ConsumedError(
            f"study {state.study!r} consumed its held-out split at {state.consume[0].time}; it is used once: "
            + _next(state)
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise StateError(message)


def next_command(state: StudyState) -> str:
    """The arguments of the command that takes a study on from where it stands."""
    study = state.study
    if not state.consume and state.register and not state.seeded:
        return f"anchor {study} --tsa URL"
    if state.name == "closed":
        return f"verify {study}" if state.analysis else f"analyze {study}"
    return {
        "unregistered": "register PROTOCOL",
        "registered": f"tune {study}",
        "tuned": f"confirm {study} --split heldout",
        "consumed": f"confirm {study} --split heldout",
    }[state.name]


def _next(state: StudyState) -> str:
    if state.analysis:
        return f"read it with `cask-eval report {state.study}` or check it with `cask-eval verify {state.study}`"
    resumes = " to resume its one attempt" if state.name == "consumed" else ""
    return f"run `cask-eval {next_command(state)}`{resumes}"


def _list(states: Iterable[StudyState]) -> str:
    return ", ".join(f"{s.study} ({s.name})" for s in states)
