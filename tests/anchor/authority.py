"""Two time-stamp authorities for tests: a real one, `openssl ts` behind HTTP, and a forger's, which signs anything."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from cask_eval.anchor import der

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl binary is not installed")

VALID = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC))
POLICY = "1.3.6.1.4.1.99999.1"
STAMPING = ExtendedKeyUsageOID.TIME_STAMPING
GRANTED, WITH_MODS, REJECTION = 0, 1, 2


@dataclass(frozen=True)
class Identity:
    """A certificate, its key, and the certificates between it and its root."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def authority(self, name: str) -> Identity:
        """An intermediate authority."""
        made = self._issue(name, VALID, [(x509.BasicConstraints(True, None), True)])
        return Identity(made.certificate, made.key, (made.certificate, *self.chain))

    def signer(
        self,
        name: str = "Signer",
        usage: tuple[ObjectIdentifier, ...] = (STAMPING,),
        critical: bool = True,
        valid: tuple[datetime, datetime] = VALID,
    ) -> Identity:
        """A time-stamping certificate, or what is not quite one."""
        extensions = [(x509.ExtendedKeyUsage(usage), critical)] if usage else []
        return self._issue(name, valid, [(x509.BasicConstraints(False, None), True), *extensions])

    def _issue(self, name: str, valid, extensions) -> Identity:
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return Identity(certify(subject, key, self.certificate.subject, self.key, valid, extensions), key, self.chain)


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def certify(subject, key, issuer, issuer_key, valid, extensions) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def root(name: str = "Root", usage: tuple[ObjectIdentifier, ...] = (), ca: bool = True) -> Identity:
    """A self-signed certificate."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    extensions = [(x509.BasicConstraints(ca, None), True)]
    if usage:
        extensions.append((x509.ExtendedKeyUsage(usage), True))
    return Identity(certify(subject, key, subject, key, VALID, extensions), key)


# --- a forger's authority ---------------------------------------------------------------------------------------------


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    out = bytes([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.insert(0, 0x80 | number & 0x7F)
        out += bytes(digits)
    return der.write(der.OID, out)


def integer(value: int) -> bytes:
    return der.write(der.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


NULL = b"\x05\x00"
SHA256 = der.sequence(oid("2.16.840.1.101.3.4.2.1"), NULL)
TST = oid("1.2.840.113549.1.9.16.1.4")
SIGNED_DATA = oid("1.2.840.113549.1.7.2")


def attribute(dotted: str, value: bytes) -> bytes:
    return der.sequence(oid(dotted), der.write(der.SET, value))


def forge(
    signer: Identity,
    hash: str,
    gen_time: datetime,
    *,
    nonce: int | None = None,
    algorithm: bytes = SHA256,
    accuracy: int | None = None,
    certificates: tuple[bytes, ...] | None = None,
    signs: Callable[[bytes], bytes] = lambda data: data,
    version: int = 1,
) -> bytes:
    """A token that says what it is told to, correctly signed. `signs` changes what is signed, behind the signature's
    back; `certificates` replaces the embedded ones."""
    imprint = der.sequence(algorithm, der.write(der.OCTET_STRING, bytes.fromhex(hash.removeprefix("sha256:"))))
    info = der.sequence(
        integer(version),
        oid(POLICY),
        imprint,
        integer(7),
        der.write(0x18, gen_time.strftime("%Y%m%d%H%M%SZ").encode()),
        der.sequence(integer(accuracy)) if accuracy is not None else b"",
        integer(nonce) if nonce is not None else b"",
    )
    attributes = b"".join(
        sorted(
            [
                attribute("1.2.840.113549.1.9.3", TST),
                attribute("1.2.840.113549.1.9.4", der.write(der.OCTET_STRING, hashlib.sha256(signs(info)).digest())),
            ]
        )
    )
    signature = signer.key.sign(der.write(der.SET, attributes), padding.PKCS1v15(), hashes.SHA256())
    issuer = signer.certificate.issuer.public_bytes()
    signer_info = der.sequence(
        integer(1),
        der.sequence(issuer, integer(signer.certificate.serial_number)),
        SHA256,
        der.write(0xA0, attributes),
        der.sequence(oid("1.2.840.113549.1.1.1"), NULL),
        der.write(der.OCTET_STRING, signature),
    )
    embedded = certificates if certificates is not None else (signer.der,)
    signed = der.sequence(
        integer(3),
        der.write(der.SET, SHA256),
        der.sequence(TST, der.write(0xA0, der.write(der.OCTET_STRING, info))),
        der.write(der.CONTEXT_0, b"".join(embedded)) if embedded else b"",
        der.write(der.SET, signer_info),
    )
    return der.sequence(SIGNED_DATA, der.write(0xA0, signed))


def reply(status: int, token: bytes = b"", text: str = "") -> bytes:
    """A TimeStampResp."""
    words = der.sequence(der.write(0x0C, text.encode())) if text else b""
    return der.sequence(der.sequence(integer(status), words), token)


# --- a real one -------------------------------------------------------------------------------------------------------

CONFIG = """\
[tsa]
default_tsa = one
[one]
dir = {folder}
serial = $dir/serial
crypto_device = builtin
signer_cert = $dir/signer.pem
{chain}
signer_key = $dir/signer.key
signer_digest = sha256
default_policy = {policy}
digests = {digests}
ordering = no
tsa_name = no
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


class OpenSSL:
    """`openssl ts` as an authority. `chain` embeds the issuing certificates too."""

    def __init__(self, folder: Path, signer: Identity, *, chain: tuple[Identity, ...] = (), digests: str = "sha256"):
        assert OPENSSL
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.config = folder, folder / "tsa.cnf"
        key = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "signer.key").write_bytes(key)
        (folder / "signer.pem").write_bytes(signer.pem)
        (folder / "serial").write_text("01\n")
        (folder / "chain.pem").write_bytes(b"".join(c.pem for c in chain))
        certs = "certs = $dir/chain.pem" if chain else ""
        self.config.write_text(CONFIG.format(folder=folder, policy=POLICY, chain=certs, digests=digests))
        self._lock = threading.Lock()

    def answer(self, request: bytes) -> bytes:
        """The authority's reply to a request."""
        with self._lock:  # openssl's file of serials is not meant for two at once
            asked, answered = self.folder / "asked.tsq", self.folder / "answered.tsr"
            asked.write_bytes(request)
            openssl("ts", "-reply", "-config", self.config, "-queryfile", asked, "-out", answered)
            return answered.read_bytes()


def openssl(*args) -> str:
    """Raises AssertionError with what openssl says, unless it is content."""
    done = subprocess.run([OPENSSL, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Server:
    """An HTTP server on this machine that answers as `answer` says: bytes, or (status, bytes), or nothing but bytes
    every `pause` seconds."""

    url: str
    answer: Callable[[bytes], bytes | tuple[int, bytes]]
    asked: list[tuple[dict, bytes]] = field(default_factory=list)
    location: str | None = None
    pause: float = 0


@contextmanager
def serve(answer: Callable[[bytes], bytes | tuple[int, bytes]]) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append((dict(self.headers), request))
            answered = server.answer(request)
            status, data = answered if isinstance(answered, tuple) else (200, answered)
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            if server.location:
                self.send_header("Location", server.location)
            self.end_headers()
            step = 1 if server.pause else len(data) or 1
            try:
                for at in range(0, len(data), step):
                    self.wfile.write(data[at : at + step])
                    self.wfile.flush()
                    time.sleep(server.pause)
            except OSError:
                pass  # the other side has had enough

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}/", answer)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.pause = 0
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def after(base: datetime, **span: float) -> datetime:
    return base + timedelta(**span)
