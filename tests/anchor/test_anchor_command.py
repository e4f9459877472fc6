"""`cask-eval anchor`: online, offline, and whatever must not get into the ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from authority import REJECTION, WITH_MODS, OpenSSL, forge, needs_openssl, openssl, reply, serve
from click.testing import CliRunner
from ledger_payloads import make_payload
from rfc3161_client import _rust

from cask_eval.anchor import request, token
from cask_eval.anchor.check import check_anchors
from cask_eval.anchor.entry import enter
from cask_eval.anchor.errors import (
    MalformedError,
    MismatchError,
    RefusedError,
    UnknownRootError,
    UnreachableError,
    UntrustedError,
)
from cask_eval.cli import cli
from cask_eval.errors import AnchorError, CaskError, StateError

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def roots(tmp_path, pki):
    path = tmp_path / "roots.pem"
    path.write_bytes(pki.root.pem)
    return path


@pytest.fixture
def cask(ledger, roots):
    """The command in the ledger's workspace. Errors of ours are raised."""

    def run(*args, trust=True):
        where = ["-C", str(ledger.path.parents[1]), "anchor"]
        trusted = ["--roots", str(roots)] if trust else []
        result = CliRunner().invoke(cli, [*where, *map(str, args), *trusted], standalone_mode=False)
        if result.exception:
            raise result.exception
        return result

    return run


def reached(ledger, *kinds):
    for kind in kinds:
        ledger.append("s", kind, make_payload(kind))


@needs_openssl
def test_a_study_stamped_as_it_goes(ledger, cask, tsa, pki):
    assert "s: register stamped at 20" in cask("--tsa", tsa.url).output
    assert "everything is stamped" in cask("s", "--tsa", tsa.url).output and len(tsa.asked) == 1
    reached(ledger, "dev_run", "select", "consume")
    cask("--tsa", tsa.url)
    reached(ledger, "records", "close", "analysis")
    cask("--tsa", tsa.url)
    found = check_anchors(ledger.events(), "s", pki.roots)
    assert found.anchored and [s.event.event for s in found.stamps] == ["register", "consume", "close"]
    cask("--tsa", tsa.url, "--event", "analysis", "--event", "register")
    more = check_anchors(ledger.events(), "s", pki.roots).stamps[3:]
    assert [s.event.event for s in more] == ["register", "analysis"]


@needs_openssl
def test_all_at_the_end_is_said_to_prove_less(ledger, cask, tsa, pki):
    reached(ledger, "dev_run", "select", "consume", "records", "close")
    result = cask("--tsa", tsa.url)
    assert result.stdout.count("stamped at") == 3
    assert "does not show that the registration was stamped first" in result.stderr
    found = check_anchors(ledger.events(), "s", pki.roots)
    assert not found.faults and len(found.gaps) == 2


@needs_openssl
def test_offline(ledger, cask, tmp_path, pki):
    asked, answer = tmp_path / "asked.tsq", tmp_path / "reply.tsr"
    result = cask("--request", asked)
    assert "--data-binary @" in result.stderr and "anchor --token reply.tsr" in result.stderr
    assert "Hash Algorithm: sha256" in openssl("ts", "-query", "-in", asked, "-text")
    answer.write_bytes(OpenSSL(tmp_path / "tsa", pki.signer).answer(asked.read_bytes()))
    # Days may pass, and other events.
    reached(ledger, "dev_run", "select")
    (row,) = json.loads(cask("--token", answer, "--json").stdout)
    assert (row["event"], row["seq"], row["hash"]) == ("register", 0, ledger.events()[0].hash)
    assert row["anchor"] == ledger.head and row["tsa"] == "CN=Honest Authority" and row["root"] == "CN=Pinned Root"
    before = ledger.path.read_bytes()
    with pytest.raises(StateError, match="has this time stamp .* already"):
        cask("--token", answer)
    assert ledger.path.read_bytes() == before


def test_requests_are_written_once_and_for_one_event(ledger, cask, tmp_path):
    path = tmp_path / "asked.tsq"
    reached(ledger, "dev_run", "select", "consume")
    with pytest.raises(StateError, match="register, consume are to be stamped; name one with --event"):
        cask("--request", path)
    (row,) = json.loads(cask("--request", path, "--event", "consume", "--json").stdout)
    assert row["hash"] == ledger.head and row["request"] == str(path)
    with pytest.raises(CaskError, match="is there already"):
        cask("--request", path, "--event", "register")
    with pytest.raises(CaskError, match="is there already"):
        cask("--request", ledger.path, "--event", "register")
    with pytest.raises(StateError, match="has no close event to stamp; it has register, dev_run, select, consume"):
        cask("--request", tmp_path / "other", "--event", "close")


@pytest.mark.parametrize("args", [(), ("--tsa", "http://x", "--request", "r"), ("--request", "r", "--token", __file__)])
def test_one_way_at_a_time(cask, args):
    with pytest.raises(CaskError, match="give one of --tsa URL, --request FILE or --token FILE"):
        cask(*args)


# --- what must not get in ---------------------------------------------------------------------------------------------


def answering(make):
    """An authority that answers `make(hash, nonce)`."""

    def answer(data: bytes):
        asked = _rust.parse_timestamp_request(data)
        return make(f"sha256:{asked.message_imprint.message.hex()}", asked.nonce)

    return answer


@pytest.fixture
def refused(ledger, cask):
    """Ask an authority that answers so; the ledger must stay as it is."""

    def run(error, message, make, trust=True):
        before = ledger.path.read_bytes()
        with serve(answering(make)) as server, pytest.raises(error, match=message) as caught:
            cask("--tsa", server.url, trust=trust)
        assert type(caught.value) is error and ledger.path.read_bytes() == before
        assert len(server.asked) == 1

    return run


def test_an_honest_answer_gets_in(cask, ledger, pki):
    """So that what is refused below is refused for its one fault."""
    with serve(answering(lambda hash, nonce: reply(0, forge(pki.signer, hash, NOW, nonce=nonce)))) as server:
        assert cask("--tsa", server.url).exit_code == 0
    assert len(ledger.events()) == 2


def test_answers_that_are_wrong(refused, pki):
    good, other = pki.signer, "sha256:" + "1" * 64
    for error, message, make in [
        (MismatchError, "another event", lambda h, n: reply(0, forge(good, other, NOW, nonce=n))),
        (MismatchError, "another request", lambda h, n: reply(0, forge(good, h, NOW, nonce=n + 1))),
        (MismatchError, "another request", lambda h, n: reply(0, forge(good, h, NOW))),
        (UnknownRootError, "--roots", lambda h, n: reply(0, forge(pki.unknown, h, NOW, nonce=n))),
        (UntrustedError, "digest", lambda h, n: reply(0, forge(good, h, NOW, nonce=n, signs=lambda d: d + b"x"))),
        (RefusedError, "granted with mods", lambda h, n: reply(WITH_MODS, forge(good, h, NOW, nonce=n))),
        (RefusedError, r"rejection \(busy\)", lambda h, n: reply(REJECTION, text="busy")),
        (MalformedError, "no token", lambda h, n: reply(0)),
        (MalformedError, "no time stamp", lambda h, n: b"<html></html>"),
        (MalformedError, "no time stamp", lambda h, n: reply(0, forge(good, h, NOW, nonce=n)) + b"\0"),
        (UnreachableError, "500", lambda h, n: (500, reply(0, forge(good, h, NOW, nonce=n)))),
    ]:
        refused(error, message, make)


def test_the_shipped_roots_are_the_default(refused, pki):
    refused(UnknownRootError, "Pinned Root", lambda h, n: reply(0, forge(pki.signer, h, NOW, nonce=n)), trust=False)


def test_a_clock_that_is_wrong(refused, pki):
    """What `verify` would call a fault for ever is not entered in the first place."""
    for away in (timedelta(hours=-1), timedelta(hours=1)):
        refused(
            AnchorError,
            "was not entered: .*; set this machine's clock right",
            lambda h, n: reply(0, forge(pki.signer, h, NOW + away, nonce=n)),
        )


def test_files_that_are_wrong(ledger, cask, tmp_path, pki):
    event, path = ledger.events()[0], tmp_path / "reply.tsr"
    before = ledger.path.read_bytes()
    for data, error, message in [
        (b"", MalformedError, "no time stamp"),
        (b"garbage", MalformedError, "no time stamp"),
        (bytes(token.MAX_BYTES + 1), MalformedError, "more than 65536"),
        (reply(REJECTION), RefusedError, "rejection"),
        (reply(0, forge(pki.signer, "sha256:" + "1" * 64, NOW)), MismatchError, "no event of this ledger"),
        (forge(pki.unknown, event.hash, NOW), UnknownRootError, "--roots"),
    ]:
        path.write_bytes(data)
        with pytest.raises(error, match=f"{path}: .*{message}"):
            cask("--token", path)
    path.write_bytes(forge(pki.signer, event.hash, NOW))
    for args in (("t",), ("--event", "close")):
        with pytest.raises(MismatchError, match="over the register event of study 's'"):
            cask(*args, "--token", path)
    assert ledger.path.read_bytes() == before
    cask("s", "--token", path, "--event", "register")
    assert len(ledger.events()) == 2


def test_a_study_that_is_not_there(ledger, cask):
    with pytest.raises(StateError, match="no study 't'"):
        cask("t", "--tsa", "http://127.0.0.1:1/")


def test_entering_needs_the_event_in_the_ledger(ledger, pki, tmp_path):
    """An event of another ledger, with a genuine stamp."""
    event = ledger.events()[0].model_copy(update={"hash": "sha256:" + "1" * 64})
    with pytest.raises(AnchorError, match="names no earlier event"):
        enter(ledger, event, forge(pki.signer, event.hash, NOW), pki.roots)
    assert request.build(ledger.events()[0]) and len(ledger.events()) == 1
