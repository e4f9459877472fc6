"""Which problems two splits share: by id, by normalised text, by near-duplicate sketch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from cask_eval.errors import SplitError
from cask_eval.splits.freeze import HASHES
from cask_eval.splits.model import Item, Manifest

THRESHOLD = "0.8"
#: Sketches of texts agree by chance on so few positions that hardly any pair has to be looked at closely.
MAX_PAIRS = 20_000_000


@dataclass(frozen=True)
class Pair:
    """One problem in two splits. `agree`: on how many sketch positions, where `how` is "near"."""

    item: Item
    other: Item
    how: Literal["id", "text", "near"]
    agree: int = HASHES


def pairs(others: Manifest, mine: Manifest, threshold: str = THRESHOLD, *, ids: bool = True) -> Iterator[Pair]:
    """Every pair of a problem of `mine` and one of `others` that are the same or nearly so. Two prompts are
    near-duplicates when their sketches agree on at least `threshold` of the positions. Without `ids` equal ids mean
    nothing: two sources may number alike. Raises ValueError when the threshold is no decimal above 0 and at most 1,
    SplitError when so many sketches agree in part that no texts can have made them."""
    import numpy as np

    need = _positions(threshold)
    by_id = {item.id: item for item in others.items} if ids else {}
    by_text: dict[str, list[Item]] = defaultdict(list)
    for item in others.items:
        by_text[item.text].append(item)
    index = _index(others.items, need)
    sketches = np.array([_sketch(item) for item in others.items]).reshape(-1, HASHES)
    looked = 0
    for item in mine.items:
        reported = set()
        if item.id in by_id:
            reported.add(item.id)
            yield Pair(item, by_id[item.id], "id")
        for other in by_text.get(item.text, []):
            if other.id not in reported:
                reported.add(other.id)
                yield Pair(item, other, "text")
        near = sorted({i for band in _bands(item, need) for i in index.get(band, ())})
        if not near:
            continue
        looked += len(near)
        if looked > MAX_PAIRS:
            raise SplitError(
                f"{others.name} and {mine.name}: more than {MAX_PAIRS} pairs of sketches agree in part; no texts make such "
                "sketches, freeze the splits again"
            )
        agree = (sketches[near] == _sketch(item)).sum(1)
        found = [(others.items[i], int(a)) for i, a in zip(near, agree) if a >= need]
        for other, count in sorted(found, key=lambda pair: pair[0].id):
            if other.id not in reported:
                yield Pair(item, other, "near", count)


def overlaps(dev: Manifest, heldout: Manifest, threshold: str = THRESHOLD) -> list[str]:
    """One line per pair of problems that must not be in both splits; none means that the splits are disjoint. Raises
    ValueError as `pairs`."""
    need, out = _positions(threshold), []
    for p in pairs(dev, heldout, threshold):
        mine, other = f"{p.item.id!r} of {heldout.name}", f"{p.other.id!r} of {dev.name}"
        if p.how == "id":
            out.append(f"{p.item.id!r} has the same id in {dev.name} and {heldout.name}")
        elif p.how == "text":
            out.append(f"{mine} has the text of {other}")
        else:
            said = f"{p.agree} of {HASHES} sketch positions agree, {need} are enough"
            out.append(f"{mine} is a near-duplicate of {other} ({said})")
    return out


def agreement(a: Item, b: Item) -> int:
    """On how many positions two sketches agree."""
    return int((_sketch(a) == _sketch(b)).sum())


def _sketch(item: Item):
    """The sketch's 32 values."""
    import numpy as np

    return np.frombuffer(bytes.fromhex(item.minhash), dtype=">u4")


def _positions(threshold: str) -> int:
    try:
        share = Decimal(threshold)
    except InvalidOperation:
        share = Decimal("NaN")
    if share.is_nan() or not 0 < share <= 1:
        raise ValueError(f"threshold is {threshold!r}; write a decimal above 0 and at most 1, such as {THRESHOLD!r}")
    return math.ceil(share * HASHES)


def _bands(item: Item, need: int) -> list[tuple[int, str]]:
    """Sketches that agree on `need` positions differ on at most HASHES − need; cut into one band more than that, they
    agree on a whole band. So looking up bands finds every pair without comparing all of them."""
    count = HASHES - need + 1
    edges = [8 * (HASHES * b // count) for b in range(count + 1)]
    return [(b, item.minhash[edges[b] : edges[b + 1]]) for b in range(count)]


def _index(items: list[Item], need: int) -> dict[tuple[int, str], list[int]]:
    """Band → places in `items`."""
    index: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        for band in _bands(item, need):
            index[band].append(i)
    return index
