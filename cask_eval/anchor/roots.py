"""The roots that time-stamp authorities are trusted under.

`roots.pem` holds the default ones; its comments say whose they are, where they come from and what their SHA-256
fingerprints are. A root is the reader's choice and never comes with a study: a study could bring its own.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.x509 import Certificate, load_pem_x509_certificates

from cask_eval.errors import CaskError

#: More than any list of authorities has.
MAX_BYTES = 4 << 20

Roots = tuple[Certificate, ...]


def pinned() -> Roots:
    """The roots that this package ships."""
    return tuple(load_pem_x509_certificates(resources.files(__package__).joinpath("roots.pem").read_bytes()))


def load(path: Path) -> Roots:
    """The certificates of a PEM file. Raises CaskError."""
    remedy = "it must hold the root certificates of the authorities that you trust, in PEM"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CaskError(f"{path}: has more than {MAX_BYTES} bytes; {remedy}")
        return tuple(load_pem_x509_certificates(path.read_bytes()))
    except OSError as error:
        raise CaskError(f"{path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise CaskError(f"{path}: {str(error).split('. ')[0]}; {remedy}") from None


def fingerprint(certificate: Certificate) -> str:
    """SHA-256 of the certificate's DER bytes, in hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()
