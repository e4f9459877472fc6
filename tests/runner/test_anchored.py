"""A real study whose registration a real time-stamp authority signs before anything runs."""

import json
import shutil
from pathlib import Path

import authority
from authority import OpenSSL, needs_openssl, serve

from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState


@needs_openssl
def test_from_registration_to_level_two(fresh, copy, cask, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    root, trusted = copy(fresh), authority.root("Reviewer's choice")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(trusted.pem)
    (root / "prereg" / "small.yaml").open("a").write("\nanchor: registration\n")
    cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    (tmp_path / "tsa").mkdir()
    with serve(OpenSSL(tmp_path / "tsa", trusted.signer()).answer) as server:
        stamp = ("-C", root, "anchor", "--tsa", server.url, "--roots", roots)
        cask(*stamp)
        cask("-C", root, "tune", "--device", "cpu")
        state = StudyState.of(Ledger(root / "prereg" / "ledger.jsonl").events(), "small")
        digest = state.register[1].protocol_digest
        run = ("-C", root, "confirm", "--split", "heldout", "--yes", digest, "--device", "cpu")
        late = Path(shutil.copytree(root, tmp_path / "late"))
        cask("-C", late, *run[2:])
        early = cask("-C", late, "verify", "--roots", roots)
        assert early.return_value == 3 and "consume (line 5) is not stamped" in early.output
        cask("-C", late, *stamp[2:])
        early = cask("-C", late, "verify", "--roots", roots)
        assert early.return_value == 3 and "entered after the run was closed" in early.output
        cask(*run, "--tsa", server.url, "--roots", roots)
    result = cask("-C", root, "verify", "--roots", roots, "--json")
    verdict = json.loads(result.output)
    assert (verdict["exit_code"], verdict["level"]) == (0, "L2"), verdict["summary"]
    assert state.seed_root() != state.register[0].hash
    assert "3 time stamps" in cask("-C", root, "status").output
    # The bundle is judged alike; and who does not know the authority is told so, not convinced.
    cask("-C", root, "export", "-o", tmp_path / "b.zip")
    assert cask("verify", tmp_path / "b.zip", "--roots", roots).return_value == 0
    assert cask("verify", tmp_path / "b.zip").return_value == 3
    # Seeds take part in the trials: what was run comes out the same again only with the stamp.
    again = cask("-C", root, "verify", "--roots", roots, "--reexecute", "6", "--device", "cpu")
    assert "6 of 6 trials" in again.output
