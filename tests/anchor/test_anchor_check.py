"""What a study's anchors prove, over ledgers whose author controls everything but the authorities' keys."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import authority
import pytest
from authority import forge
from ledger_payloads import make_payload

from cask_eval.anchor import check
from cask_eval.anchor.check import check_anchors
from cask_eval.anchor.entry import targets
from cask_eval.anchor.token import beacon
from cask_eval.canonical import ZERO, digest
from cask_eval.errors import StateError
from cask_eval.ledger.events import Event
from cask_eval.ledger.log import TIME, audit, line_of, seal
from cask_eval.ledger.state import StudyState

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


class Story:
    """A ledger in the making; `clock` is what the author's machine says."""

    def __init__(self, signer: authority.Identity):
        self.signer, self.clock = signer, START
        self.events: list[Event] = []

    def add(self, kind: str, *, study: str = "s", payload: dict | None = None) -> Event:
        prev = self.events[-1].hash if self.events else ZERO
        body = payload or make_payload(kind).model_dump(mode="json")
        self.events.append(seal(len(self.events), prev, study, kind, self.clock.strftime(TIME), body))
        return self.events[-1]

    def anchor(
        self, event: Event, when: datetime | None = None, signer: authority.Identity | None = None, **edits
    ) -> Event:
        """An anchor of an event, stamped a minute ago or at `when`."""
        when, signer = when or self.clock - MINUTE, signer or self.signer
        token = forge(signer, edits.pop("over", event.hash), when)
        payload = {
            "seq": event.seq,
            "hash": event.hash,
            "tsa": signer.certificate.subject.rfc4514_string(),
            "gen_time": when.strftime(TIME),
            "beacon": beacon(token),
            "token": base64.b64encode(token).decode(),
        }
        return self.add("anchor", study=edits.pop("study", "s"), payload=payload | edits)

    def wait(self, span: timedelta = HOUR) -> None:
        self.clock += span

    def milestones(self, anchored: Sequence[str] = check.MILESTONES) -> Story:
        """A study's life, each milestone stamped within the hour."""
        for kind in ("register", "dev_run", "select", "consume", "records", "close", "analysis"):
            event = self.add(kind)
            self.wait(2 * MINUTE)
            if kind in anchored:
                self.anchor(event)
            self.wait()
        return self


@pytest.fixture
def story(pki):
    return Story(pki.signer)


@pytest.fixture
def judge(pki):
    def run(story: Story, study: str = "s"):
        events, faults = audit(line_of(e) for e in story.events)
        assert not faults and events == story.events
        return check_anchors(events, study, pki.roots)

    return run


def test_an_anchored_study(story, judge):
    found = judge(story.milestones())
    assert found.anchored and not found.faults and not found.gaps
    assert [s.event.event for s in found.stamps] == ["register", "consume", "close"]
    register, consume, close = (found.brackets[k] for k in check.MILESTONES)
    assert register.not_before is None and register.not_after == START + MINUTE
    # The held-out run began after the registration was stamped, and was over when close was.
    assert consume.not_before == register.not_after < consume.stated < consume.not_after
    assert close.not_before == consume.not_after < close.stated < close.not_after
    assert found.notes[0] == "register was written not after 2026-03-01T12:01:00Z"
    assert re.fullmatch("consume was written not before .*Z and not after .*Z", found.notes[1])


def test_no_anchor_at_all(story, judge):
    found = judge(story.milestones(()))
    assert not found.anchored and not found.faults and not found.notes
    lines = {"register": 1, "consume": 4, "close": 6}
    assert [g.split(";")[0] for g in found.gaps] == [f"{k} (line {n}) is not stamped" for k, n in lines.items()]
    assert "`cask-eval anchor s --tsa URL`" in found.gaps[1]


@pytest.mark.parametrize("missing", check.MILESTONES)
def test_one_anchor_too_few(story, judge, missing):
    found = judge(story.milestones([k for k in check.MILESTONES if k != missing]))
    assert not found.anchored and not found.faults
    (gap,) = found.gaps
    assert gap.startswith(f"{missing} (line ") and "is not stamped; `cask-eval anchor s --tsa URL` still can" in gap


def test_a_study_that_is_not_over(story, judge):
    story.add("register")
    assert "there is no close event yet" in judge(story).gaps


def test_a_stamp_on_a_later_event_covers_the_earlier_ones(story, judge):
    found = judge(story.milestones(["close"]))
    close = found.brackets["close"].not_after
    assert found.brackets["register"].not_after == found.brackets["consume"].not_after == close
    assert len(found.gaps) == 2


def test_an_amendment_stands_for_the_registration(story, judge):
    """Whose stamp counts is what was in force when the held-out split was consumed."""
    register, _, amend, consume, _ = (story.add(k) for k in ("register", "dev_run", "amend", "consume", "amend"))
    events = story.events
    assert check.milestones(events, "s") == {"register": amend, "consume": consume}
    assert check.milestones(events[:2], "s") == {"register": register}
    assert check.milestones(events, "t") == {}
    assert targets(events, "s") == [amend, consume]
    assert "amend (line 3) is not stamped" in check_anchors(events, "s", ()).gaps[0]


def test_seeds_need_the_first_stamp_over_the_registration(story, judge):
    body = make_payload("register").model_dump(mode="json")
    register = story.add("register", payload={**body, "protocol": {**body["protocol"], "anchor": "registration"}})
    other = story.add("dev_run")
    story.wait()
    story.anchor(other)
    with pytest.raises(StateError, match="cask-eval anchor s --tsa URL"):
        StudyState.of(story.events, "s").seed_root()
    story.anchor(register)
    story.wait()
    story.anchor(register)
    first, second = judge(story).stamps[1:]
    assert first.token.beacon != second.token.beacon
    want = digest({"registration": register.hash, "beacon": first.token.beacon})
    assert StudyState.of(story.events, "s").seed_root() == want


# --- attacks ----------------------------------------------------------------------------------------------------------


def test_a_token_of_another_event(story, judge):
    """The registration is replaced; the old one's stamp is put in front of the new one."""
    story.milestones([])
    story.anchor(story.events[0], over=story.events[3].hash)
    assert "is over" in judge(story).faults[0] and "belongs to another event" in judge(story).faults[0]


@pytest.mark.parametrize(
    "edits, fault",
    [
        ({"hash": ZERO}, "names no earlier event"),
        ({"seq": 1}, "not an event of this study at that line"),
        ({"beacon": ZERO}, "another beacon"),
        ({"gen_time": "2026-01-01T00:00:00Z"}, "states 2026-01-01T00:00:00Z by CN=Honest .*, but the token says"),
        ({"tsa": "CN=DigiCert"}, "states .* by CN=DigiCert, but the token says .* by CN=Honest Authority"),
        ({"token": "MAA="}, "no time stamp"),
        ({"token": "MAA"}, "padding"),
    ],
)
def test_an_anchor_that_says_other_than_its_token(story, judge, edits, fault):
    story.milestones([])
    story.anchor(story.events[0], **edits)
    (found,) = judge(story).faults
    assert re.search(fault, found) and found.startswith("line 8, the stamp over line ")


def test_an_anchor_in_front_of_its_event(story, judge, pki):
    story.add("register")
    later = Story(pki.signer)
    later.events = list(story.events)
    later.clock += HOUR
    story.anchor(later.add("dev_run"))
    assert "names no earlier event" in judge(story).faults[0]


def test_an_anchor_of_another_study_or_of_an_anchor(story, judge):
    other = story.add("register", study="t")
    own = story.add("register")
    story.wait()
    story.anchor(other)
    assert "not an event of this study" in judge(story).faults[0]
    first = story.anchor(own)
    story.anchor(first)
    assert "not an event of this study" in judge(story).faults[1]
    # What is wrong with one study's anchors is not the other's fault.
    assert not judge(story, "t").faults


def test_an_authority_of_the_authors_own(story, judge, pki):
    """Nobody can tell here whether it is genuine, so nothing is claimed."""
    story.signer = pki.unknown
    found = judge(story.milestones())
    assert not found.anchored and not found.stamps and not found.notes and not found.faults
    assert sum("no root that is trusted here" in g for g in found.strange) == 3
    assert sum("is not stamped" in g for g in found.gaps) == 3


def test_a_stamp_more_under_an_unknown_root_takes_nothing_away(story, judge, pki):
    story.milestones()
    story.anchor(story.events[0], signer=pki.unknown)
    found = judge(story)
    assert found.anchored and len(found.strange) == 1


def test_a_run_that_was_stamped_when_it_was_over(story, judge):
    """The stamp over `consume` then shows nothing that the one over `close` does not."""
    for kind in ("register", "consume", "close"):
        event = story.add(kind)
        story.wait()
        if kind != "consume":
            story.anchor(event)
    story.anchor(story.events[2])
    found = judge(story)
    assert not found.anchored and not found.faults
    assert any("entered after the run was closed" in gap for gap in found.gaps)


def test_a_forged_signature_is_a_fault(story, judge, pki):
    crooked = pki.root.signer("Honest Authority", usage=())
    story.signer = crooked
    found = judge(story.milestones())
    assert len(found.faults) == 3 and all("purpose" in f for f in found.faults)


def test_events_stated_later_than_they_were_stamped(story, judge):
    register = story.add("register")
    story.wait()
    story.anchor(register, START - HOUR)
    (fault,) = judge(story).faults
    assert fault.startswith("line 1 states 2026-03-01T12:00:00Z, but it existed at 2026-03-01T11:00:00Z")


def test_a_clock_set_back_after_a_stamp(story, judge):
    """The author's machine lives in the past; the authority does not."""
    register = story.add("register")
    story.wait()
    story.anchor(register, story.clock + 24 * HOUR)
    (fault,) = judge(story).faults
    assert "back-dated" in fault and fault.startswith("line 2 states 2026-03-01T13:00:00Z, but it holds a stamp of")


def test_honest_clocks_may_differ_a_little(story, judge):
    register = story.add("register")
    story.anchor(register, START - 4 * MINUTE)
    story.anchor(register, START + 4 * MINUTE)
    assert not judge(story).faults


def test_stamps_that_contradict_the_chain(story, judge):
    """A later line cannot have been stamped before the stamp that it contains."""
    register = story.add("register")
    story.wait(2 * HOUR)
    story.anchor(register, START + 2 * HOUR)
    consume = story.add("consume")
    story.anchor(consume, START + 2 * HOUR - 6 * MINUTE)
    faults = judge(story).faults
    assert any(re.match("line 3 was stamped at .*, but follows line 2, which holds a stamp", f) for f in faults)


def test_a_registration_stamped_after_the_run(story, judge):
    """Everything is written in one go, then stamped in the right order within a minute."""
    story.milestones([])
    for i, kind in enumerate(check.MILESTONES):
        event = next(e for e in story.events if e.event == kind)
        story.anchor(event, story.clock - (5 - i) * MINUTE)
    found = judge(story)
    assert not found.anchored and not found.faults
    register, consume = found.gaps
    assert register == (
        "the stamp over register was entered after the held-out run began, so nothing shows that the registration was "
        "stamped first"
    )
    assert consume.startswith("the stamp over consume was entered after the run was closed")
    assert "7 hours after the time that it states" in found.notes[0]


def test_stamps_in_the_wrong_order(story, judge):
    story.milestones(["register"])
    event = {e.event: e for e in story.events}
    story.anchor(event["close"], story.clock - 5 * MINUTE)
    story.anchor(event["consume"], story.clock - 2 * MINUTE)
    found = judge(story)
    assert not found.faults
    assert found.gaps[1:] == ("close was stamped before consume was, so the stamps do not show their order",)
    assert found.gaps[0].startswith("the stamp over consume was entered after the run was closed")
    # Whatever their order, consume existed when close was stamped.
    assert found.brackets["consume"].not_after == found.brackets["close"].not_after


def test_back_dating_shows_in_the_notes(story, judge):
    register = story.add("register")
    story.wait(60 * 24 * HOUR)
    story.anchor(register)
    assert judge(story).notes == [
        "register was written not after 2026-04-30T11:59:00Z, 59 days after the time that it states"
    ]


def test_too_many_anchors_are_not_verified(story, judge, monkeypatch):
    monkeypatch.setattr(check, "MAX_ANCHORS", 2)
    story.milestones()
    found = judge(story)
    assert found.faults == ("the study has 3 anchors, more than 2",) and not found.anchored


def test_checking_loads_nothing_that_uses_the_network():
    code = (
        "import sys; import cask_eval.anchor.check, cask_eval.anchor.roots; "
        "cask_eval.anchor.roots.pinned(); "
        "assert not {'cask_eval.anchor.send', 'urllib.request', 'http.client', 'ssl'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
