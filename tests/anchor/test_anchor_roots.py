"""The roots that are shipped are the ones that their file names."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cask_eval.anchor import roots
from cask_eval.errors import CaskError


def test_the_pinned_roots_are_as_documented():
    text = resources.files("cask_eval.anchor").joinpath("roots.pem").read_text()
    certificates = roots.pinned()
    assert [roots.fingerprint(c) for c in certificates] == re.findall("^# SHA-256: ([0-9a-f]{64})$", text, re.M)
    assert [c.subject.rfc4514_string() for c in certificates] == re.findall("^# Subject: (.+)$", text, re.M)
    assert {roots.fingerprint(c) for c in certificates} == {
        "552f7bdcf1a7af9e6ce672017f4f12abf77240c78e761ac203d1d9d20ac89988",  # DigiCert Trusted Root G4
        "5d56499be4d2e08bcfcad08a3e38723d50503bde706948e42f55603019e528ae",  # IdenTrust Commercial Root CA 1
        "2aca8fea5d3ce48b01cc77076293c280e6c23ffe44034757ee7833ca9f45d633",  # sigstore-tsa-selfsigned
    }
    for certificate in certificates:
        certificate.verify_directly_issued_by(certificate)


def test_roots_of_the_readers_own(tmp_path, pki):
    path = tmp_path / "roots.pem"
    path.write_bytes(b"# mine\n" + pki.root.pem + pki.stranger.pem)
    assert roots.load(path) == (pki.root.certificate, pki.stranger.certificate)


def test_files_that_hold_no_roots(tmp_path, pki, monkeypatch):
    path = tmp_path / "roots.pem"
    for data in (b"", b"nothing", pki.root.der, pki.root.pem[:-60]):
        path.write_bytes(data)
        with pytest.raises(CaskError, match=f"{path}: .*in PEM"):
            roots.load(path)
    with pytest.raises(CaskError, match="No such file"):
        roots.load(tmp_path / "none.pem")
    monkeypatch.setattr(roots, "MAX_BYTES", 100)
    path.write_bytes(pki.root.certificate.public_bytes(Encoding.PEM))
    with pytest.raises(CaskError, match="more than 100 bytes"):
        roots.load(path)
