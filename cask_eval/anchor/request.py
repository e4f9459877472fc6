"""The request for a time stamp over one event."""

from __future__ import annotations

from dataclasses import dataclass

from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

from cask_eval.anchor.errors import MismatchError
from cask_eval.canonical import canonical
from cask_eval.ledger.events import Event


@dataclass(frozen=True)
class Request:
    """A TimeStampReq: `der` is what is sent (a ``.tsq`` file), `nonce` is what the reply must repeat."""

    der: bytes
    nonce: int


def build(event: Event) -> Request:
    """A request whose message imprint is the event's hash, with a random nonce, asking for the signer's certificate.

    Raises MismatchError when the hash is not that of the event's content: no authority is asked to vouch for an event
    that the ledger itself does not hold together.
    """
    body = canonical(event.model_dump(mode="json", exclude={"hash"}))
    made = TimestampRequestBuilder().data(body).hash_algorithm(HashAlgorithm.SHA256).cert_request(cert_request=True)
    request = made.build()
    if request.message_imprint.message != digest_of(event.hash):
        raise MismatchError(f"the {event.event} event's hash is not that of its content; restore the ledger")
    assert request.nonce is not None
    return Request(request.as_bytes(), request.nonce)


def digest_of(hash: str) -> bytes:
    """The 32 bytes of a hash that is written ``sha256:<hex>``."""
    return bytes.fromhex(hash.removeprefix("sha256:"))
