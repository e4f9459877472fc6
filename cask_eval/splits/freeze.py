"""Make a split manifest from problems: what a split is, fixed before anything is run on it."""

from __future__ import annotations

import hashlib
import struct
import unicodedata
from collections.abc import Iterable
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from cask_eval.canonical import ZERO, canonical, digest, digest_bytes
from cask_eval.errors import SplitError
from cask_eval.fields import first_fault
from cask_eval.splits.model import Item, Manifest

SHINGLE_WORDS = 5
HASHES = 32

_PER_DIGEST = 8  # 32-bit values in one SHA-256


class Problem(Protocol):
    """What `freeze` reads of a problem (`cask_eval.tasks.Problem` fits)."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def stratum(self) -> str: ...


def freeze(
    name: str,
    task: str,
    role: Literal["dev", "heldout"],
    source: dict[str, Any],
    rule: str,
    problems: Iterable[Problem],
) -> Manifest:
    """The manifest of `problems` in their order. `source` is what the task needs to make them again, `rule` says in
    words how they were drawn.

    Raises SplitError when there are no problems, when two share an id or a normalised prompt, or when a field
    cannot be stored.
    """
    items: list[Item] = []
    ids: set[str] = set()
    texts: dict[str, str] = {}
    for problem in problems:
        item = item_of(problem)
        if item.id in ids:
            raise SplitError(f"split {name!r}: two problems have the id {item.id!r}; ids must differ")
        if item.text in texts:
            raise SplitError(
                f"split {name!r}: problems {texts[item.text]!r} and {item.id!r} ask the same question; drop one"
            )
        ids.add(item.id)
        texts[item.text] = item.id
        items.append(item)
    try:
        canonical(source)
        draft = Manifest(
            manifest="cask-eval/split/1",
            name=name,
            task=task,
            role=role,
            source=source,
            rule=rule,
            items=items,
            merkle_root=ZERO,
        )
    except ValidationError as error:
        raise SplitError(f"split {name!r}: {first_fault(error, value=True)}") from None
    except ValueError as error:
        raise SplitError(f"split {name!r}: source: {error}") from None
    return draft.model_copy(update={"merkle_root": draft.root()})


def item_of(problem: Problem) -> Item:
    """One problem's line in the manifest. Raises SplitError when a text cannot be encoded."""
    try:
        return Item(
            id=problem.id,
            digest=problem_digest(problem),
            text=text_digest(problem.prompt),
            minhash=minhash(problem.prompt),
            stratum=problem.stratum,
        )
    except ValueError as error:
        raise SplitError(f"problem {problem.id!r} cannot be frozen: {error}") from None


def problem_digest(problem: Problem) -> str:
    """Digest of what decides an outcome: (id, prompt, answer)."""
    return digest([problem.id, problem.prompt, problem.answer])


def text_digest(prompt: str) -> str:
    """Digest of the normalised prompt."""
    return digest_bytes(normalise(prompt).encode())


def normalise(text: str) -> str:
    """The prompt without what does not change the question: Unicode form (NFKC), letter case, white space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding case can leave a form that NFKC would change again.
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def minhash(prompt: str) -> str:
    """MinHash sketch (Broder 1997) of the normalised prompt's word 5-shingles: 32 values of 32 bits, as 256 hex digits.

    Value k of a shingle is the (k mod 8)-th big-endian 32-bit word of SHA-256(byte k div 8 ‖ shingle in UTF-8); the
    sketch holds the smallest of each over all shingles. A prompt of fewer than five words is one shingle. The share
    of positions on which two sketches agree estimates the Jaccard similarity of the shingle sets.
    """
    words = normalise(prompt).split(" ")
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    shingles = {" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in range(count)}
    sketch: list[int] = [2**32 - 1] * HASHES
    for shingle in shingles:
        sketch = list(map(min, sketch, _values(shingle)))
    return struct.pack(f">{HASHES}I", *sketch).hex()


def _values(shingle: bytes) -> tuple[int, ...]:
    salts = range(HASHES // _PER_DIGEST)
    data = b"".join(hashlib.sha256(bytes([salt]) + shingle).digest() for salt in salts)
    return struct.unpack(f">{HASHES}I", data)
