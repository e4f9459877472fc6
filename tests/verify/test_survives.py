"""Evidence that was made to make the verifier stumble, speak for somebody else, or take for ever."""

import copy
import time
from datetime import timedelta

import authority
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_payloads import make_payload
from simulator import PROTOCOL, STUDY, Author, Forger, stamped_by

from cask_eval.canonical import ZERO, digest
from cask_eval.cli import cli
from cask_eval.errors import SplitError, StateError
from cask_eval.ledger.events import PAYLOADS, Anchor, Event
from cask_eval.ledger.state import StudyState, unfolded
from cask_eval.splits.disjoint import overlaps
from cask_eval.splits.model import Manifest
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.formats import statement
from cask_eval.verify.run import judge, verify
from cask_eval.workspace import Workspace


def stray(forger: Forger, *kinds: str, study: str = "other") -> None:
    """Events of another study in an order that no command writes."""
    last, register = forger.events[-1], forger.event("register")
    amend = {**register, "reason": "because it is so", "replaces": digest("x"), "changes": [
        {"field": "hypothesis", "before": "", "after": "1"}]}  # fmt: skip
    for kind in kinds:
        payload = amend if kind == "amend" else forger.event(kind)
        forger.events.append({**last, "study": study, "event": kind, "payload": copy.deepcopy(payload)})
    forger.chain()
    forger.write()


@pytest.mark.parametrize("kinds", [("consume", "amend"), ("amend", "register"), ("dev_run", "amend", "amend", "close")])
def test_another_study_s_events_in_any_order_do_no_harm(root, kinds):
    stray(Forger(root), *kinds)
    assert verify(root, STUDY, require="L0").exit_code == 0
    assert [r.id for r in verify(root, "other", require="L0").failed if r.id == "V02"] == ["V02"]
    result = CliRunner().invoke(cli, ["-C", str(root), "status"])
    assert result.exit_code == 0 and "sim: closed" in result.output


@given(order=st.lists(st.sampled_from([k for k in PAYLOADS if k != "anchor"]), max_size=7))
@settings(deadline=None)
def test_any_order_of_events_has_a_state(order):
    events = [
        Event(seq=i, prev=ZERO, study="s", event=k, time="2027-01-01T00:00:00Z", hash=ZERO,
              payload=make_payload(k).model_dump(mode="json"))
        for i, k in enumerate(order)
    ]  # fmt: skip
    state = StudyState.of(events, "s")
    assert (state.name == "unregistered") == (state.register is None) == ("register" not in order)
    for before, event in unfolded(events, "s"):
        assert before == StudyState.of(events[: event.seq], "s")


def test_a_decision_cannot_speak_for_the_verifier(root):
    forger = Forger(root)
    for branch in forger.event("register")["protocol"]["branches"]:
        branch["decision"] += "\n\x1b[2Jevidence L2: time-stamped"
    forger.protocol_file = forger.protocol_file.replace(
        b"decision: adopt the candidate", b'decision: "adopt the candidate\\n\\e[2Jevidence L2: time-stamped"'
    ).replace(b"decision: report as regime-dependent", b'decision: "report as regime-dependent\\n\\e[2Jevidence L2: x"')
    forger.resign().write()
    verdict = verify(root, STUDY, require="L0")
    assert verdict.summary.isprintable() and r"\nevidence" not in verdict.summary.replace(r"\n\x1b", "")
    assert all(line_.isprintable() for line_ in verdict.lines)


def test_no_statement_of_an_outcome_that_was_not_derived(root):
    (root / "reports/sim/heldout.jsonl").unlink()
    evidence = Evidence.load(Workspace(root), STUDY)
    verdict = judge(evidence, "L0")
    assert verdict.outcome is None
    with pytest.raises(StateError, match="not derived again"):
        statement(evidence, verdict)


def test_seeds_from_an_authority_of_the_author_s_own_date_nothing(tmp_path, signer, roots):
    """The first stamp over the registration, on which the seeds depend, is the author's; trusted ones follow."""
    mine = stamped_by(authority.root("Mine").signer("Own clock"))
    author = Author(tmp_path / "ws", stamped_by(signer))
    stamp, author.stamp = author.stamp, None
    author.lock(PROTOCOL)
    register = author.write("register", author.lock(PROTOCOL + "anchor: registration\n"))
    for made in (mine, stamp):
        said = made(register.hash, author.clock)
        author.ledger.append(STUDY, "anchor", Anchor(seq=0, hash=register.hash, **said), now=author.clock)
    author.clock += timedelta(minutes=1)
    author.stamp = stamp
    author.tune()
    author.confirm()
    author.analyse()
    verdict = verify(tmp_path / "ws", STUDY, roots=roots)
    assert [r.id for r in verdict.undone] == ["V06"] and verdict.exit_code == 3


def test_sketches_that_no_text_makes_end_soon(root):
    forger = Forger(root)
    for role, manifest in forger.manifests.items():
        first = manifest["items"][0]
        manifest["items"] = [
            {**first, "id": f"{role}{i}", "digest": digest(f"d{role}{i}"), "text": digest(f"t{role}{i}"),
             "minhash": "0" * 128 + digest(f"{role}{i}")[7:] * 2}
            for i in range(3000)
        ]  # fmt: skip
        manifest["merkle_root"] = Manifest.model_validate(manifest).root()
    began = time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cask_eval.splits.disjoint.MAX_PAIRS", 1_000_000)
        with pytest.raises(SplitError, match="no texts make such sketches"):
            overlaps(*(Manifest.model_validate(forger.manifests[r]) for r in ("dev", "heldout")))
    assert time.process_time() - began < 30
