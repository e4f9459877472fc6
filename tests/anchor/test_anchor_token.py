"""Tokens: an honest one of a real authority holds, and every other kind is refused with its own error."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import authority
import pytest
from authority import GRANTED, REJECTION, SHA256, STAMPING, WITH_MODS, OpenSSL, forge, needs_openssl, openssl, reply
from cryptography.x509.oid import ExtendedKeyUsageOID

from cask_eval.anchor import der, request, token
from cask_eval.anchor.errors import (
    MalformedError,
    MismatchError,
    RefusedError,
    UnknownRootError,
    UntrustedError,
)
from cask_eval.canonical import ZERO, canonical
from cask_eval.errors import FAILED, USAGE

WHEN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def event(ledger):
    return ledger.events()[0]


@pytest.fixture
def verify(pki, event):
    """`token.verify` over the event under the pinned root."""
    return lambda made, **options: token.verify(made, event.hash, pki.roots, **options)


# --- a real authority -------------------------------------------------------------------------------------------------


@needs_openssl
def test_a_real_token_holds(tmp_path, pki, event, verify):
    asked = request.build(event)
    answer = OpenSSL(tmp_path / "tsa", pki.signer).answer(asked.der)
    found = verify(token.granted(answer), nonce=asked.nonce)
    assert found.hash == event.hash and found.nonce == asked.nonce
    assert abs(found.gen_time - datetime.now(UTC)) < timedelta(minutes=1)
    assert found.gen_time.utcoffset() == timedelta(0) and found.gen_time.microsecond == 0
    assert (found.tsa, found.root, found.policy) == ("CN=Honest Authority", "CN=Pinned Root", authority.POLICY)
    assert found.serial == 2  # the first after the one in the file of serials
    # The reply and the token alone say the same.
    assert token.from_file(answer) == token.from_file(found.der) == found.der
    assert token.imprint(found.der) == event.hash


@needs_openssl
def test_anybody_can_check_it_with_openssl(tmp_path, pki, event):
    """What the package's documentation promises: the hash alone is enough, and so are the event's own bytes."""
    asked = request.build(event)
    answer = OpenSSL(tmp_path / "tsa", pki.signer).answer(asked.der)
    files = {"roots.pem": pki.root.pem, "token.der": token.granted(answer), "reply.tsr": answer, "asked.tsq": asked.der}
    files["event.json"] = canonical(event.model_dump(mode="json", exclude={"hash"}))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    trust = ("-CAfile", tmp_path / "roots.pem")
    digest = event.hash.removeprefix("sha256:")
    openssl("ts", "-verify", "-digest", digest, "-token_in", "-in", tmp_path / "token.der", *trust)
    openssl("ts", "-verify", "-data", tmp_path / "event.json", "-in", tmp_path / "reply.tsr", *trust)
    openssl("ts", "-verify", "-queryfile", tmp_path / "asked.tsq", "-in", tmp_path / "reply.tsr", *trust)
    with pytest.raises(AssertionError, match="message imprint mismatch"):
        openssl("ts", "-verify", "-digest", "0" * 64, "-token_in", "-in", tmp_path / "token.der", *trust)


@needs_openssl
def test_a_chain_in_any_order_holds(tmp_path, pki, event, verify):
    """openssl and DigiCert write the certificates as they come; the parser wants them in the order of DER."""
    rng, seen = random.Random(0), set()
    chain = [pki.middle, pki.root, pki.stranger, pki.signer]
    for i in range(6):
        rng.shuffle(chain)
        answer = OpenSSL(tmp_path / f"tsa{i}", pki.below, chain=tuple(chain)).answer(request.build(event).der)
        made = token.granted(answer)
        assert verify(made).root == "CN=Pinned Root"
        _, explicit = der.some(der.read(made).content, 2)
        certificates = next(p for p in der.elements(der.read(explicit.content).content) if p.tag == der.CONTEXT_0)
        found = [part.whole for part in der.elements(certificates.content)]
        seen.add(found == sorted(found))
    assert False in seen
    # Without the intermediate there is no path to the root.
    answer = OpenSSL(tmp_path / "bare", pki.below).answer(request.build(event).der)
    with pytest.raises(UnknownRootError, match="CN=Middle"):
        verify(token.granted(answer))


@needs_openssl
def test_a_real_authority_rejects_what_it_does_not_do(tmp_path, pki, event):
    answer = OpenSSL(tmp_path / "tsa", pki.signer, digests="sha512").answer(request.build(event).der)
    with pytest.raises(RefusedError, match=r"did not grant .*: rejection \(.*algorithm"):
        token.granted(answer)


def test_requests_are_fresh_and_over_the_hash(event):
    one, two = request.build(event), request.build(event)
    assert one.nonce != two.nonce and one.nonce > 2**32
    assert request.digest_of(event.hash) in one.der
    with pytest.raises(MismatchError, match="restore the ledger"):
        request.build(event.model_copy(update={"hash": ZERO}))


# --- a forger's -------------------------------------------------------------------------------------------------------


def test_a_forged_token_that_is_right_in_everything_holds(pki, event, verify):
    """So that what the tests below refuse is refused for its one fault."""
    found = verify(forge(pki.signer, event.hash, WHEN, nonce=5, accuracy=1), nonce=5)
    assert (found.gen_time, found.serial, found.nonce) == (WHEN, 7, 5)
    assert verify(forge(pki.signer, event.hash, WHEN)).nonce is None


def test_a_token_of_another_event(pki, event, verify):
    with pytest.raises(MismatchError, match=f"is over {ZERO}, not over {event.hash}"):
        verify(forge(pki.signer, ZERO, WHEN))


def test_a_token_in_answer_to_another_request(pki, event, verify):
    for nonce in (6, None):
        with pytest.raises(MismatchError, match="another request"):
            verify(forge(pki.signer, event.hash, WHEN, nonce=nonce), nonce=5)


def test_another_hash_algorithm_of_the_same_size(pki, event, verify):
    sha3 = der.sequence(authority.oid("2.16.840.1.101.3.4.2.8"), authority.NULL)
    with pytest.raises(MismatchError, match="not SHA-256"):
        verify(forge(pki.signer, event.hash, WHEN, algorithm=sha3))


def test_an_authority_that_nobody_pinned(pki, event, verify):
    """It may carry the honest one's name."""
    with pytest.raises(UnknownRootError, match=r"CN=Stranger's Root.*--roots"):
        verify(forge(pki.unknown, event.hash, WHEN))
    with pytest.raises(UnknownRootError, match="no root certificate"):
        token.verify(forge(pki.signer, event.hash, WHEN), event.hash, ())
    # Nor does it help to bring one's own root along, or the pinned one.
    for extra in (pki.stranger.der, pki.root.der):
        made = forge(pki.unknown, event.hash, WHEN, certificates=tuple(sorted([pki.unknown.der, extra])))
        with pytest.raises(UnknownRootError):
            verify(made)


def test_a_signer_that_is_pinned_itself(event):
    """A self-signed authority is trusted only as a root, and must be one for time stamps even so."""
    bare, fit = authority.root("Own", ca=False), authority.root("Own", usage=(STAMPING,), ca=False)
    with pytest.raises(UntrustedError, match="purpose"):
        token.verify(forge(bare, event.hash, WHEN), event.hash, (bare.certificate,))
    with pytest.raises(UnknownRootError):
        token.verify(forge(fit, event.hash, WHEN), event.hash, (bare.certificate,))
    assert token.verify(forge(fit, event.hash, WHEN), event.hash, (fit.certificate,)).root == "CN=Own"


@pytest.mark.parametrize(
    "usage, critical",
    [
        ((), True),
        ((ExtendedKeyUsageOID.CODE_SIGNING,), True),
        ((STAMPING, ExtendedKeyUsageOID.CODE_SIGNING), True),
        ((STAMPING,), False),
    ],
    ids=["none", "another", "more", "not critical"],
)
def test_a_certificate_for_something_else(pki, event, verify, usage, critical):
    with pytest.raises(UntrustedError, match="purpose|EKU") as caught:
        verify(forge(pki.root.signer("Odd", usage, critical), event.hash, WHEN))
    assert type(caught.value) is UntrustedError


@pytest.mark.parametrize(
    "valid, message",
    [
        ((WHEN - timedelta(days=9), WHEN - timedelta(days=1)), "expired"),
        ((WHEN + timedelta(days=1), WHEN + timedelta(days=9)), "not yet valid"),
    ],
)
def test_a_certificate_out_of_its_time(pki, event, verify, valid, message):
    signer = pki.root.signer("Late", valid=valid)
    with pytest.raises(UntrustedError, match=message):
        verify(forge(signer, event.hash, WHEN))
    # What counts is the token's time, not today's.
    assert verify(forge(signer, event.hash, valid[0] + timedelta(days=1)))


def test_a_changed_time_breaks_the_signature(pki, event, verify):
    made = forge(pki.signer, event.hash, WHEN, signs=lambda info: info.replace(b"20260301", b"20260101"))
    with pytest.raises(UntrustedError, match="digest"):
        verify(made)
    # In the bytes themselves: the content's copy, then the signature's last byte.
    good = forge(pki.signer, event.hash, WHEN)
    assert good.count(b"20260301120000Z") == 1
    with pytest.raises(UntrustedError, match="digest"):
        verify(good.replace(b"20260301120000Z", b"20260201120000Z"))
    with pytest.raises(UntrustedError, match="signature"):
        verify(good[:-1] + bytes([good[-1] ^ 1]))


def test_a_signer_that_is_not_there(pki, event, verify):
    for certificates in ((), (pki.root.der,)):
        with pytest.raises(UntrustedError):
            verify(forge(pki.signer, event.hash, WHEN, certificates=certificates))


def test_an_authority_that_does_not_know_the_time(pki, event, verify):
    with pytest.raises(UntrustedError, match="accurate to 1:00:00"):
        verify(forge(pki.signer, event.hash, WHEN, accuracy=3600))
    with pytest.raises(UntrustedError, match="accurate"):
        verify(forge(pki.signer, event.hash, WHEN, accuracy=2**100))


def test_another_version(pki, event, verify):
    with pytest.raises(MalformedError, match="version"):
        verify(forge(pki.signer, event.hash, WHEN, version=2))


@pytest.mark.parametrize(
    "status, message",
    [(WITH_MODS, "granted with mods"), (REJECTION, r"rejection \(no time\)"), (3, "waiting"), (9, "9")],
)
def test_anything_but_granted(pki, event, status, message):
    made = forge(pki.signer, event.hash, WHEN) if status == WITH_MODS else b""
    with pytest.raises(RefusedError, match=message) as caught:
        token.granted(reply(status, made, "no time" if status == REJECTION else ""))
    assert caught.value.exit_code == USAGE


def test_granted_without_a_token():
    with pytest.raises(MalformedError, match="no token"):
        token.granted(reply(GRANTED))


def test_what_is_no_time_stamp(pki, event, verify):
    made = forge(pki.signer, event.hash, WHEN)
    answer = reply(GRANTED, made)
    assert token.granted(answer) == made
    cut = (answer + b"\0", answer[:-1], answer[:300])
    for data in (b"", b"\0", b"<html>busy</html>", b"0\x80\0\0", *cut, b"0" * 90_000):
        with pytest.raises(MalformedError) as caught:
            token.granted(data)
        assert caught.value.exit_code == FAILED
    for data in (b"", made + b"\0", made + made, made[:-1], answer, der.sequence(made), SHA256, b"0" * 90_000):
        with pytest.raises(MalformedError):
            verify(data)
        with pytest.raises(MalformedError):
            token.imprint(data)


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_holds_or_escapes(pki, event, verify, seed):
    """Any one or two bytes changed: a typed error, or, where no signature covers the bytes, the same time stamp."""
    rng = random.Random(seed)
    good = forge(pki.signer, event.hash, WHEN, nonce=5)
    held = verify(good)
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 1, 2))):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            found = verify(bytes(bad))
        except (MalformedError, MismatchError, UntrustedError):
            continue
        assert (found.gen_time, found.hash, found.beacon, found.nonce) == (WHEN, event.hash, held.beacon, 5)


def test_the_beacon_is_the_signature_and_nothing_around_it(pki, event, verify):
    one = forge(pki.signer, event.hash, WHEN, certificates=tuple(sorted([pki.signer.der, pki.root.der])))
    assert verify(one).beacon == verify(forge(pki.signer, event.hash, WHEN)).beacon
    assert verify(forge(pki.signer, event.hash, WHEN + timedelta(seconds=1))).beacon != verify(one).beacon
    assert token.beacon(verify(one).der) == verify(one).beacon
    with pytest.raises(MalformedError):
        token.beacon(b"0")
