"""Reading and verifying a time-stamp token. No network, and everything that is not right raises."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.x509 import Certificate, load_der_x509_certificate
from rfc3161_client import (
    PKIStatus,
    TimeStampResponse,
    TimeStampTokenInfo,
    VerifierBuilder,
    decode_timestamp_response,
)
from rfc3161_client.verify import SHA256_OID

from cask_eval.anchor import der
from cask_eval.anchor.errors import (
    AnchorError,
    MalformedError,
    MismatchError,
    RefusedError,
    UnknownRootError,
    UntrustedError,
)
from cask_eval.anchor.request import digest_of
from cask_eval.canonical import digest_bytes

#: More than any reply has; real ones with a chain of three certificates have 6 KiB.
MAX_BYTES = 64 << 10
#: How far apart two honest clocks may be, and how inaccurate an authority may call itself.
SKEW = timedelta(minutes=5)

_GRANTED = der.sequence(der.write(der.INTEGER, b"\0"))

# What OpenSSL says when the chain ends at a certificate that it was not told to trust.
_UNKNOWN = re.compile(r"unable to get (local )?issuer|self[- ]signed certificate|unable to verify the first")
# What it says of a chain, and of anything else.
_CHAIN = re.compile(r'Verify error: ?([^"]+)"')
_REASON = re.compile(r'reason: "([^"]+)"')


@dataclass(frozen=True)
class Token:
    """A verified time-stamp token. `hash` is what it is over, `gen_time` when the authority says that it saw it, whole
    seconds of UTC. `tsa` and `root` are the subjects of the signer's certificate and of the root behind it.

    `beacon`: see the function of that name.
    """

    der: bytes
    hash: str
    gen_time: datetime
    policy: str
    serial: int
    nonce: int | None
    tsa: str
    root: str
    beacon: str


def granted(reply: bytes) -> bytes:
    """The token inside an authority's reply (a TimeStampResp, a ``.tsr`` file), as the authority wrote it.

    Raises RefusedError unless it was granted as asked, MalformedError when this is no reply.
    """
    response = _decode(reply)
    if response.status != PKIStatus.GRANTED:
        known = {int(s) for s in PKIStatus}
        word = PKIStatus(response.status).name.lower() if response.status in known else str(response.status)
        why = "; ".join(response.status_string)
        raise RefusedError(
            f"the authority did not grant the request as it was: {word.replace('_', ' ')}"
            + (f" ({why:.200})" if why else "")
            + "; try again or ask another authority"
        )
    parts = der.elements(der.read(reply).content)
    if len(parts) != 2:
        raise MalformedError("the authority granted the request, but its reply holds no token; ask another one")
    return parts[1].whole


def from_file(data: bytes) -> bytes:
    """The token in a file's bytes: a whole reply or the token alone. Raises as `granted`."""
    return granted(data) if _is_reply(data) else data


def imprint(token: bytes) -> str:
    """What a token is over, written as an event's hash, unverified. Raises MalformedError, and MismatchError when the
    hash algorithm is not SHA-256."""
    found = _info(_response(token)).message_imprint
    if found.hash_algorithm.dotted_string != SHA256_OID:
        raise MismatchError(
            f"the time stamp's hash algorithm is {found.hash_algorithm.dotted_string}, not SHA-256; "
            "send the request that `cask-eval anchor --request` writes"
        )
    return f"sha256:{found.message.hex()}"


def beacon(token: bytes) -> str:
    """The digest of a token's signature, unverified: a number that nobody but the authority could have known before
    the token was made, and that no change to what the signature does not cover can alter. An ECDSA signature has a twin
    that holds as well, so there the holder of a token may choose between two beacons. Raises MalformedError."""
    with _reading():
        _, explicit = der.some(der.read(token).content, 2)
        *_, signers = der.elements(der.read(explicit.content).content)  # SignedData's last member (RFC 5652 §5)
        parts = der.elements(der.read(signers.content).content)
        (signature,) = (part.content for part in parts if part.tag == der.OCTET_STRING)
        return digest_bytes(signature)


def verify(token: bytes, hash: str, roots: Sequence[Certificate], *, nonce: int | None = None) -> Token:
    """Check that `token` is a time stamp over `hash` by an authority under one of `roots`.

    `nonce` is that of the request, where it is known: only who asked can tell, and what a time stamp proves does not
    depend on it. Certificates must have been valid at the token's time, not now; nobody is asked whether one was
    revoked. Raises MalformedError, MismatchError, UnknownRootError or UntrustedError.
    """
    if not roots:
        raise UnknownRootError("no root certificate is trusted here; give them with --roots")
    response = _response(token)
    info = _info(response)
    actual = imprint(token)
    if actual != hash:
        raise MismatchError(
            f"the time stamp is over {actual}, not over {hash}; it belongs to another event or another ledger"
        )
    if nonce is not None and info.nonce != nonce:
        raise MismatchError("the time stamp answers another request (its nonce is another); ask again")
    if info.version != 1 or info.policy is None:
        raise MalformedError("the time stamp is not of version 1 with a policy (RFC 3161)")
    if (accuracy := _accuracy(info.accuracy)) > SKEW:
        raise UntrustedError(f"the authority calls its time accurate to {accuracy} only; ask another one")
    _check(response, hash, roots)
    with _reading():
        return Token(
            der=token,
            hash=actual,
            gen_time=info.gen_time.astimezone(UTC).replace(microsecond=0),
            policy=info.policy.dotted_string,
            serial=info.serial_number,
            nonce=info.nonce,
            tsa=_signer(response).subject.rfc4514_string()[:1000] or "(no name)",
            root=_root(response, hash, roots),
            beacon=beacon(token),
        )


def _is_reply(data: bytes) -> bool:
    """A reply begins with its status, a token with the type of its content."""
    try:
        return der.elements(der.read(data).content)[0].tag != der.OID
    except (ValueError, IndexError):
        return True


def _decode(reply: bytes) -> TimeStampResponse:
    if len(reply) > MAX_BYTES:
        raise MalformedError(f"this has {len(reply)} bytes; no time stamp has more than {MAX_BYTES}")
    with _reading():
        return decode_timestamp_response(_ordered(reply))


def _response(token: bytes) -> TimeStampResponse:
    """The token as a granted reply, which is the only form that `rfc3161_client` takes. The status is not signed."""
    return _decode(der.sequence(_GRANTED, token))


def _ordered(reply: bytes) -> bytes:
    """The reply with its certificates in the order of their encodings, as DER wants a set. DigiCert and OpenSSL write a
    chain as it comes, and the parser takes nothing that is not DER. No signature covers the order."""
    parts = der.elements(der.read(reply).content)
    if len(parts) < 2:
        return reply
    status, token = der.some(der.read(reply).content, 2)
    kind, explicit = der.some(token.content, 2)
    signed = [
        der.write(part.tag, der.sort_set(der.elements(part.content))) if part.tag == der.CONTEXT_0 else part.whole
        for part in der.elements(der.read(explicit.content).content)
    ]
    content = der.write(explicit.tag, der.sequence(*signed))
    return der.sequence(status.whole, der.write(token.tag, kind.whole + content))


def _info(response: TimeStampResponse) -> TimeStampTokenInfo:
    with _reading():
        return response.tst_info


@contextmanager
def _reading() -> Iterator[None]:
    """The parsers below raise errors of many kinds at hostile bytes; here they are all of one kind."""
    try:
        yield
    except AnchorError:
        raise
    except Exception as error:
        raise MalformedError(
            f"this is no time stamp: {error}; it must be the authority's reply (.tsr), unchanged"
        ) from None


def _accuracy(accuracy) -> timedelta:
    if accuracy is None:
        return timedelta()
    try:
        seconds = timedelta(seconds=accuracy.seconds or 0)
    except OverflowError:
        return timedelta.max
    return seconds + timedelta(milliseconds=accuracy.millis or 0, microseconds=accuracy.micros or 0)


def _check(response: TimeStampResponse, hash: str, roots: Sequence[Certificate]) -> None:
    """Signature, chain, validity at the token's time, key usage."""
    try:
        VerifierBuilder(roots=list(roots)).build().verify(response, digest_of(hash))
    except Exception as error:  # VerificationError, and whatever else a hostile certificate raises
        text = str(error)
        if _UNKNOWN.search(text):
            raise UnknownRootError(
                f"no root that is trusted here stands behind the authority ({_issuer(response)}); where you trust it, "
                "give its root certificate with --roots"
            ) from None
        said = _CHAIN.findall(text) or _REASON.findall(text) or [text]
        raise UntrustedError(f"the time stamp does not hold: {'; '.join(said)}; ask for another one") from None


def _root(response: TimeStampResponse, hash: str, roots: Sequence[Certificate]) -> str:
    """Which of the roots it was."""
    for root in roots:
        try:
            _check(response, hash, [root])
        except UntrustedError:
            continue
        return root.subject.rfc4514_string()
    raise UntrustedError("the time stamp holds only under several roots together; give its own root alone")


def _signer(response: TimeStampResponse) -> Certificate:
    (signer,) = response.signed_data.signer_infos
    for data in response.signed_data.certificates:
        certificate = load_der_x509_certificate(data)
        if certificate.issuer == signer.issuer and certificate.serial_number == signer.serial_number:
            return certificate
    raise UntrustedError("the time stamp does not hold its signer's certificate")


def _issuer(response: TimeStampResponse) -> str:
    try:
        return f"issuer of the signer: {_signer(response).issuer.rfc4514_string():.200}"
    except Exception:
        return "it names no issuer"
