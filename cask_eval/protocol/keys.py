"""Which trials a protocol asks for, and the seed of each. Pure functions of the protocol and the manifests.

A key is (phase, cell, arm, config, problem, sample), as in `cask_eval.records.model.Record.key`.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Iterable

from cask_eval.canonical import canonical, merkle_root
from cask_eval.errors import ProtocolError
from cask_eval.fields import Param
from cask_eval.protocol.model import Candidate, Protocol

Key = tuple[str, str, str, str, str, int]

_SALT = b"cask-eval/trial-seed/1"


def configs(candidate: Candidate) -> list[tuple[str, dict[str, Param]]]:
    """The candidate's configurations: the product of the tuned values, the first parameter varying slowest.

    Each is (name, params) with name ``lambda=0.5,x=…`` in the declared order, ``untuned`` when nothing is tuned
    ("" is the baseline's); params are the fixed ones with the tuned ones added. Raises ProtocolError when two
    configurations have one name.
    """
    names = list(candidate.tune)
    out = []
    for values in itertools.product(*candidate.tune.values()):
        name = ",".join(f"{n}={_text(v)}" for n, v in zip(names, values, strict=True)) or "untuned"
        out.append((name, {**candidate.params, **dict(zip(names, values, strict=True))}))
    seen: set[str] = set()
    for name, _ in out:
        if name in seen:
            raise ProtocolError([f"candidate.tune: the configuration {name!r} appears twice; list each value once"])
        seen.add(name)
    return out


def expected_keys(protocol: Protocol, heldout_ids: Iterable[str]) -> list[Key]:
    """Every held-out trial exactly once, in the order they are run: cell, arm, problem, sample."""
    ids = list(heldout_ids)
    return [
        ("heldout", cell.name, arm, "", problem, sample)
        for cell in protocol.cells
        for arm in protocol.arms
        for problem in ids
        for sample in range(protocol.generation.samples)
    ]


def dev_keys(protocol: Protocol, dev_ids: Iterable[str]) -> list[Key]:
    """Every development trial exactly once: the baseline and each candidate configuration. Controls decide
    nothing, so they are not run here."""
    ids = list(dev_ids)
    runs = [("baseline", ""), *(("candidate", name) for name, _ in configs(protocol.candidate))]
    return [
        ("dev", cell.name, arm, config, problem, sample)
        for cell in protocol.cells
        for arm, config in runs
        for problem in ids
        for sample in range(protocol.generation.samples)
    ]


def keys_root(keys: Iterable[Key]) -> str:
    """Merkle root over the sorted keys, each as canonical JSON: the order of the run does not matter."""
    return merkle_root(canonical(list(key)) for key in sorted(keys))


def trial_seed(registration_hash: str, cell: str, problem: str, sample: int, *, phase: str) -> str:
    """128 bits for one trial, as 32 hex digits: HKDF-SHA256 (RFC 5869) of the registration's hash.

    Nobody can draw held-out samples before the registration exists, because its hash is the key. The arm is left
    out: arms share their random numbers, which takes noise out of the paired difference. `phase` keeps a
    development trial from foretelling a held-out one.
    """
    info = canonical([phase, cell, problem, sample])
    return hkdf_sha256(registration_hash.encode(), _SALT, info, 16).hex()


def hkdf_sha256(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 extract-and-expand. Raises ValueError beyond 255 blocks."""
    if length > 255 * 32:
        raise ValueError(f"HKDF-SHA256 gives at most {255 * 32} bytes, not {length}")
    secret = hmac.digest(salt or bytes(32), key, hashlib.sha256)
    out, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(secret, block + info + bytes([counter]), hashlib.sha256)
        out += block
    return out[:length]


def _text(value: Param) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
