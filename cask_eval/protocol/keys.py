"""Which trials a protocol asks for, and the seed of each. Pure functions of the protocol and the manifests.

A key is (phase, cell, arm, config, problem, sample), as in `cask_eval.records.model.Record.key`.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

from cask_eval.canonical import canonical, merkle_root
from cask_eval.errors import ProtocolError
from cask_eval.fields import Param
from cask_eval.protocol.model import CEILING, REFERENCE, Arm, Candidate, Protocol

Key = tuple[str, str, str, str, str, int]

# Cell → arm → configuration → the budgets that the search for its budget ran, in that order.
Tried = Mapping[str, Mapping[str, Mapping[str, Sequence[int]]]]

# Between a configuration's name and the budget of a search. No configuration's name holds it.
_AT = "@"

_SALT = b"cask-eval/trial-seed/1"

# A protocol of a few lines can ask for any number of these. Both are far beyond what has ever been run.
MAX_CONFIGS = 10_000
MAX_TRIALS = 5_000_000


@dataclass(frozen=True)
class Grid(Sequence[Key]):
    """Trials that a protocol asks for, as the product that they are and not one by one: at each of `places`, which are
    (phase, cell, arm, configuration), every problem `samples` times."""

    places: tuple[tuple[str, str, str, str], ...]
    problems: tuple[str, ...]
    samples: int

    def __len__(self) -> int:
        return len(self.places) * len(self.problems) * self.samples

    @overload
    def __getitem__(self, index: int) -> Key: ...
    @overload
    def __getitem__(self, index: slice) -> list[Key]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        rest, sample = divmod(range(len(self))[index], self.samples)
        place, problem = divmod(rest, len(self.problems))
        return (*self.places[place], self.problems[problem], sample)

    def __iter__(self) -> Iterator[Key]:
        for place, problem in itertools.product(self.places, self.problems):
            for sample in range(self.samples):
                yield (*place, problem, sample)

    def __contains__(self, key: object) -> bool:
        *place, problem, sample = key
        return tuple(place) in self._places and problem in self._problems and sample in range(self.samples)

    def __add__(self, other: Grid) -> Grid:
        """Both, which must be about the same problems and samples."""
        if (self.problems, self.samples) != (other.problems, other.samples):
            raise ValueError("these trials are about other problems")
        return Grid(self.places + other.places, self.problems, self.samples)

    def in_order(self) -> Iterator[Key]:
        """As `sorted`, but one by one."""
        for place, times in sorted(self._places.items()):
            for problem, again in sorted(self._problems.items()):
                for sample in range(self.samples):
                    yield from itertools.repeat((*place, problem, sample), times * again)

    @cached_property
    def _places(self) -> Counter[tuple[str, str, str, str]]:
        return Counter(self.places)

    @cached_property
    def _problems(self) -> Counter[str]:
        return Counter(self.problems)


def configs(arm: Arm) -> list[tuple[str, dict[str, Param]]]:
    """An arm's configurations: a candidate's are the product of the tuned values, the first parameter varying slowest;
    any other arm has one.

    Each is (name, params) with name ``lambda=0.5,x=…`` in the declared order, ``untuned`` when nothing is tuned, and
    "" for an arm that is no candidate; params are the fixed ones with the tuned ones added. Raises ProtocolError when
    two configurations have one name, one looks like a step of a search (`step_config`), or there are too many.
    """
    if not isinstance(arm, Candidate):
        return [("", dict(arm.params))]
    if (count := math.prod(map(len, arm.tune.values()))) > MAX_CONFIGS:
        raise ProtocolError([f"asks for {count} configurations, and {MAX_CONFIGS} are the most; list fewer values"])
    names = list(arm.tune)
    out = []
    for values in itertools.product(*arm.tune.values()):
        name = ",".join(f"{n}={_text(v)}" for n, v in zip(names, values, strict=True)) or "untuned"
        out.append((name, {**arm.params, **dict(zip(names, values, strict=True))}))
    seen: set[str] = set()
    for name, _ in out:
        if name in seen:
            raise ProtocolError([f"the configuration {name!r} appears twice; list each value once"])
        if is_step(name):
            raise ProtocolError(
                [f"the configuration {name!r} holds {_AT!r}, which marks a search's budgets; rename it"]
            )
        seen.add(name)
    return out


def expected_keys(protocol: Protocol, heldout_ids: Iterable[str], survivors: Collection[str]) -> Grid:
    """Every held-out trial exactly once: references and their ceiling, where the endpoint asks for them; then cell,
    arm, problem, sample. Of the candidates only the survivors are run. Raises ProtocolError when there are too many."""
    ids = list(heldout_ids)
    bounded(protocol, len(protocol.heldout_arms(survivors)), ids)
    places = [("heldout", cell.name, arm, "") for cell in protocol.cells for arm in protocol.heldout_arms(survivors)]
    return reference_keys(protocol, "heldout", ids) + _grid(protocol, places, ids)


def dev_runs(protocol: Protocol) -> dict[str, list[str]]:
    """Arm → configurations that run on the dev split, in that order: the baseline and every candidate. Controls decide
    nothing, so they are not run there."""
    controls = {c.name for c in protocol.controls}
    run = {name: arm for name, arm in protocol.arms.items() if name not in controls}
    return {name: [config for config, _ in configs(arm)] for name, arm in run.items()}


def dev_keys(protocol: Protocol, dev_ids: Iterable[str]) -> Grid:
    """Every development trial of a configuration exactly once, after the references where the endpoint asks for them;
    those of searches are in `search_keys`. Raises ProtocolError when there are too many."""
    ids = list(dev_ids)
    bounded(protocol, sum(map(len, dev_runs(protocol).values())), ids)
    runs = dev_runs(protocol).items()
    places = [("dev", cell.name, arm, config) for cell in protocol.cells for arm, row in runs for config in row]
    return reference_keys(protocol, "dev", ids) + _grid(protocol, places, ids)


def full_arms(phase: str) -> list[str]:
    """What a reference cell runs in a phase: the ceiling decides nothing, so like a control it is not run on dev."""
    return [REFERENCE] if phase == "dev" else [REFERENCE, CEILING]


def reference_keys(protocol: Protocol, phase: str, ids: Iterable[str]) -> Grid:
    """The trials of the reference cells, which run before all others."""
    places = [(phase, cell.name, arm, "") for cell in protocol.reference_cells for arm in full_arms(phase)]
    return _grid(protocol, places, ids)


def _grid(protocol: Protocol, places: Iterable[tuple[str, str, str, str]], ids: Iterable[str]) -> Grid:
    return Grid(tuple(places), tuple(ids), protocol.generation.samples)


def bounded(protocol: Protocol, arms: int, ids: Sequence[str]) -> None:
    """Raises ProtocolError when so many arms ask for too many trials."""
    count = len(protocol.models) * len(protocol.budgets) * arms * len(ids) * protocol.generation.samples
    if count > MAX_TRIALS:
        raise ProtocolError([f"the protocol asks for {count} trials, and {MAX_TRIALS} are the most"])


def step_config(config: str, budget: int) -> str:
    """The name under which the dev trials of a configuration at one budget of the search for its own are recorded."""
    return f"{config}{_AT}{budget}"


def is_step(config: str) -> bool:
    """Whether this is such a name: trials that are run for their cache alone and never count as a configuration's."""
    return _AT in config


def search_keys(protocol: Protocol, tried: Tried, dev_ids: Iterable[str]) -> Grid:
    """The development trials of every search, exactly once, in the order they are run. What `tried` says of cells, arms
    and configurations that the protocol does not have is passed over."""
    places = [
        ("dev", cell.name, arm, step_config(config, budget))
        for cell in protocol.cells
        for arm, names in dev_runs(protocol).items()
        for config in names
        for budget in tried.get(cell.name, {}).get(arm, {}).get(config, ())
    ]
    return _grid(protocol, places, dev_ids)


def keys_root(keys: Iterable[Key]) -> str:
    """Merkle root over the sorted keys, each as canonical JSON: the order of the run does not matter."""
    ordered = keys.in_order() if isinstance(keys, Grid) else sorted(keys)
    return merkle_root(canonical(list(key)) for key in ordered)


def trial_seed(registration_hash: str, cell: str, problem: str, sample: int, *, phase: str) -> str:
    """128 bits for one trial, as 32 hex digits: HKDF-SHA256 (RFC 5869) of the registration's hash.

    Nobody can draw held-out samples before the registration exists, because its hash is the key. The arm is left
    out: arms share their random numbers, which takes noise out of the paired difference. `phase` keeps a
    development trial from foretelling a held-out one.
    """
    info = canonical([phase, cell, problem, sample])
    return hkdf_sha256(registration_hash.encode(), _SALT, info, 16).hex()


def chain_seed(seed: int, chain: int) -> int:
    """The 128-bit seed of one of a trial's chains; the first one's is the trial's own."""
    if chain == 0:
        return seed
    return int.from_bytes(hkdf_sha256(seed.to_bytes(16, "big"), _SALT, canonical([chain]), 16), "big")


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
