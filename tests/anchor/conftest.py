from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import authority
import pytest
from authority import OpenSSL, serve
from ledger_payloads import make_payload

from cask_eval.ledger.log import Ledger


@pytest.fixture(scope="session")
def pki():
    """A pinned authority, one that nobody has heard of, and signers of the first with a fault each."""
    root = authority.root("Pinned Root")
    middle = root.authority("Middle")
    stranger = authority.root("Stranger's Root")
    return SimpleNamespace(
        root=root,
        middle=middle,
        signer=root.signer("Honest Authority"),
        below=middle.signer("Below"),
        stranger=stranger,
        unknown=stranger.signer("Honest Authority"),
        roots=(root.certificate,),
    )


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A study that is registered, in a workspace."""
    made = Ledger(tmp_path / "ws" / "prereg" / "ledger.jsonl")
    made.append("s", "register", make_payload("register"))
    return made


@pytest.fixture
def tsa(tmp_path, pki):
    """A real authority behind HTTP."""
    real = OpenSSL(tmp_path / "tsa", pki.signer)
    with serve(real.answer) as server:
        yield server
