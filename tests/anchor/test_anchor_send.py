"""Authorities that answer as none should."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from authority import serve

from cask_eval.anchor import send
from cask_eval.anchor.errors import UnreachableError
from cask_eval.anchor.token import MAX_BYTES
from cask_eval.errors import USAGE


def test_what_is_sent():
    with serve(lambda request: request[::-1]) as server:
        assert send.post(server.url, b"abc") == b"cba"
    ((headers, body),) = server.asked
    assert body == b"abc" and headers["Content-Type"] == "application/timestamp-query"
    assert headers["User-Agent"].startswith("cask-eval/")


@pytest.mark.parametrize("status", [204, 302, 307, 404, 500, 503])
def test_another_status(status):
    with serve(lambda request: (status, b"")) as server:
        server.location = "http://127.0.0.1:1/elsewhere" if status in (302, 307) else None
        with pytest.raises(UnreachableError, match=f"HTTP status {status}.*--request FILE") as caught:
            send.post(server.url, b"abc")
    assert len(server.asked) == 1 and caught.value.exit_code == USAGE
    assert (server.location or "") in str(caught.value)


def test_a_reply_without_end():
    with serve(lambda request: bytes(4 << 20)) as server:
        with pytest.raises(UnreachableError, match=f"more than {MAX_BYTES} bytes"):
            send.post(server.url, b"abc")


def test_a_reply_that_trickles():
    """No single read times out, the whole does."""
    with serve(lambda request: bytes(2000)) as server:
        server.pause = 0.05
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="no whole answer within 0.4 seconds"):
            send.post(server.url, b"abc", timeout=0.4)
        assert time.monotonic() - began < 3


def test_no_reply_at_all():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(UnreachableError, match="within|timed out"):
            send.post(url, b"abc", timeout=0.3)
    with pytest.raises(UnreachableError, match="refused"):
        send.post(url, b"abc")


def test_what_is_no_http(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"

        def talk():
            other, _ = server.accept()
            other.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            other.close()

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(UnreachableError):
            send.post(url, b"abc")
        thread.join()


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://host/", "timestamp.digicert.com", "http://", "http:///x", "", "http://host:port/",
     "http://[::1/"],
)  # fmt: skip
def test_what_is_no_address(url):
    with pytest.raises(UnreachableError, match="is no address"):
        send.post(url, b"abc")


def test_an_address_with_a_slip():
    with pytest.raises(UnreachableError, match="http://127.0.0.1/a b"):
        send.post("http://127.0.0.1/a b", b"abc")
