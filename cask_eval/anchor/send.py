"""Time-Stamp Protocol via HTTP (RFC 3161 §3.4). The only module of this package that uses the network.

The reply is signed and names its request, so plain HTTP is as good as HTTPS here; what is guarded against is an
authority, or something in between, that answers forever or with anything at all.
"""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
from typing import IO, Any
from urllib.parse import urlsplit

from cask_eval import __version__
from cask_eval.anchor.errors import UnreachableError
from cask_eval.anchor.token import MAX_BYTES

#: Seconds from the first byte sent to the last one received.
TIMEOUT = 30.0

_OTHERWISE = "try again, name another authority with --tsa, or send a --request FILE by other means"


def post(url: str, request: bytes, *, timeout: float = TIMEOUT) -> bytes:
    """The authority's reply to a TimeStampReq, at most `MAX_BYTES` of it, unverified. Raises UnreachableError."""
    if not _is_address(url):
        raise UnreachableError(f"{url}: is no address of a time-stamp authority; write http://host/path, or https")
    found: list[bytes] = []
    faults: list[Exception] = []

    def work() -> None:
        try:
            found.append(_post(url, request, timeout))
        except Exception as error:  # raised again by the caller, whatever it is
            faults.append(error)

    # A socket's time-out starts again with every byte, so a reply that trickles would never end. The thread is a
    # daemon: one that hangs ends with the process.
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(timeout)
    if faults:
        raise faults[0]
    if not found:
        raise UnreachableError(f"{url}: no whole answer within {timeout:g} seconds; {_OTHERWISE}")
    return found[0]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _post(url: str, request: bytes, timeout: float) -> bytes:
    headers = {
        "Content-Type": "application/timestamp-query",
        "Accept": "application/timestamp-reply",
        "User-Agent": f"cask-eval/{__version__}",
    }
    try:
        asked = urllib.request.Request(url, data=request, headers=headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(asked, timeout=timeout) as reply:
            if reply.status not in (200, 201):
                raise UnreachableError(f"{url}: answers with HTTP status {reply.status}; {_OTHERWISE}")
            data = reply.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        where = f" to {error.headers['Location']!r:.200}" if error.headers.get("Location") else ""
        raise UnreachableError(f"{url}: answers with HTTP status {error.code}{where}; {_OTHERWISE}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UnreachableError(f"{url}: {reason or type(error).__name__}; {_OTHERWISE}") from None
    if len(data) > MAX_BYTES:
        raise UnreachableError(f"{url}: answers with more than {MAX_BYTES} bytes, no time stamp has that many")
    return data


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST arrives as a GET without its request: that it moved is worth an error with the new address."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None
