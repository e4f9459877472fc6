"""What may follow what, which study a command means, and what the messages advise."""

from __future__ import annotations

import pytest
from ledger_payloads import make_payload

from cask_eval.canonical import ZERO
from cask_eval.errors import CONSUMED, USAGE, ConsumedError, StateError
from cask_eval.ledger.log import Ledger, seal
from cask_eval.ledger.state import StudyState, guard, pick, require, studies

LIFE = ("register", "dev_run", "select", "consume", "records", "close", "analysis")
# After so many events of LIFE: the state's name and what may come next.
STAGES = [
    (0, "unregistered", {"register"}),
    (1, "registered", {"dev_run"}),
    (2, "registered", {"select"}),
    (3, "tuned", {"consume"}),
    (4, "consumed", {"records"}),
    (5, "consumed", {"records", "close"}),
    (6, "closed", {"analysis"}),
    (7, "closed", set()),
]


def story(*steps: tuple[str, str] | tuple[str, str, dict]):
    """Sealed events of (study, kind[, options])."""
    events, prev = [], ZERO
    for seq, (study, kind, *options) in enumerate(steps):
        body = make_payload(kind, **(options[0] if options else {})).model_dump(mode="json")
        events.append(seal(seq, prev, study, kind, "2026-03-01T12:00:00Z", body))
        prev = events[-1].hash
    return events


def until(study: str, count: int):
    return [(study, kind) for kind in LIFE[:count]]


@pytest.mark.parametrize("count, name, allowed", STAGES)
def test_states_and_transitions(count, name, allowed):
    state = StudyState.of(story(*until("s", count)), "s")
    assert state.name == name
    for kind in LIFE:
        if kind in allowed:
            require(state, kind)
        else:
            with pytest.raises(StateError):
                require(state, kind)


@pytest.mark.parametrize(
    "count, kind, error, message",
    [
        (0, "consume", StateError, "not registered; run `cask-eval register PROTOCOL`"),
        (1, "register", StateError, "another `study:` name"),
        (1, "consume", StateError, "not tuned; run `cask-eval tune s`"),
        (1, "select", StateError, "no development run yet; run `cask-eval tune s`"),
        (2, "dev_run", StateError, "has its development run already"),
        (3, "select", StateError, "tuned already; run `cask-eval confirm s --split heldout`"),
        (3, "records", StateError, "has not begun its held-out run"),
        (4, "consume", ConsumedError, "consumed its held-out split at 2026-03-01T12:00:00Z"),
        (4, "dev_run", ConsumedError, "resume its one attempt"),
        (4, "close", StateError, "no complete held-out session"),
        (5, "analysis", StateError, "interim look"),
        (6, "consume", ConsumedError, "used once: run `cask-eval analyze s`"),
        (6, "records", ConsumedError, "closed and takes no more records"),
        (7, "analysis", StateError, "has its analysis already"),
        (7, "register", StateError, "registered already"),
        (3, "nonsense", StateError, "no kind of event"),
    ],
)
def test_refusals_say_what_to_do(count, kind, error, message):
    with pytest.raises(StateError) as caught:
        require(StudyState.of(story(*until("s", count)), "s"), kind)
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert caught.value.exit_code == (CONSUMED if error is ConsumedError else USAGE)


def test_accessors_are_typed():
    state = StudyState.of(story(*until("s", 7)), "s")
    assert state.register[1].protocol_path == "prereg/s.yaml"
    assert state.dev_run[1].records.count == 1
    assert state.select[1].rule == "max"
    assert state.consume[1].expected == 1
    assert [r.session for _, r in state.sessions] == [1]
    assert state.close[0].seq == 5
    assert state.analysis[1].branch == "A"
    nothing = StudyState.of([], "s")
    assert nothing.register is nothing.close is None and nothing.sessions == ()


def test_the_first_of_two_events_counts():
    events = story(("s", "register"), ("s", "register"))
    assert StudyState.of(events, "s").register[0] is events[0]


def test_an_interrupted_session_does_not_close():
    steps = [*until("s", 4), ("s", "records", {"complete": False})]
    with pytest.raises(StateError, match="no complete held-out session"):
        require(StudyState.of(story(*steps), "s"), "close")
    steps.append(("s", "records", {"session": 2}))
    require(StudyState.of(story(*steps), "s"), "close")


def test_interleaved_studies_do_not_touch():
    mixed = [step for pair in zip(until("a", 7), until("b", 7), strict=True) for step in pair]
    events = story(*mixed)
    for count in range(len(events) + 1):
        found = studies(events[:count])
        for name, own in (("a", (count + 1) // 2), ("b", count // 2)):
            if own:
                assert found[name].name == STAGES[own][1]
    assert list(studies(events)) == ["a", "b"]


def test_guard_makes_check_and_write_one_step(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    for kind in LIFE:
        ledger.append("s", kind, make_payload(kind), allow=guard("s", kind))
    with pytest.raises(ConsumedError):
        ledger.append("s", "consume", make_payload("consume"), allow=guard("s", "consume"))
    assert [e.event for e in ledger.events()] == list(LIFE)


def test_pick():
    events = story(*until("done", 7), *until("fresh", 3), *until("new", 1))
    assert pick(events, None, {"tuned"}) == "fresh"
    assert pick(events, None, {"registered"}) == "new"
    assert pick(events, "done", {"consumed", "closed"}) == "done"


@pytest.mark.parametrize(
    "steps, name, states, error, message",
    [
        ([], None, {"tuned"}, StateError, "the ledger has no study; run `cask-eval register"),
        ([], "x", {"tuned"}, StateError, "no study 'x'; it is empty; run `cask-eval register"),
        (until("abc", 3), "abd", {"tuned"}, StateError, "no study 'abd'; did you mean 'abc'?"),
        (until("abc", 3), "zz", {"tuned"}, StateError, "it has abc (tuned)"),
        (until("a", 1), None, {"tuned"}, StateError, "'a' is registered, not tuned; run `cask-eval tune a`"),
        (until("a", 1), "a", {"tuned", "consumed"}, StateError, "not tuned or consumed"),
        (until("a", 7), None, {"tuned"}, ConsumedError, "'a' is closed, not tuned; read it with"),
        (until("a", 5), "a", {"registered"}, ConsumedError, "resume its one attempt"),
        (until("a", 3) + until("b", 3), None, {"tuned"}, StateError, "several studies are tuned: a, b; name the one"),
        (until("a", 1) + until("b", 7), None, {"tuned"}, StateError, "a (registered), b (closed)"),
        (until("a", 7) + until("b", 7), None, {"tuned"}, ConsumedError, "a (closed), b (closed)"),
    ],
)
def test_pick_refuses_with_the_remedy(steps, name, states, error, message):
    with pytest.raises(StateError) as caught:
        pick(story(*steps), name, states)
    assert type(caught.value) is error
    assert message in str(caught.value)
