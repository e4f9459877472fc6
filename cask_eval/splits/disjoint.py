"""Whether two splits share problems: by id, by normalised text, by near-duplicate sketch."""

from __future__ import annotations

import math
from collections import defaultdict
from decimal import Decimal, InvalidOperation

from cask_eval.splits.freeze import HASHES
from cask_eval.splits.model import Item, Manifest

THRESHOLD = "0.8"


def overlaps(dev: Manifest, heldout: Manifest, threshold: str = THRESHOLD) -> list[str]:
    """One line per pair of problems that must not be in both splits; none means that the splits are disjoint.

    Two prompts are near-duplicates when their sketches agree on at least `threshold` of the positions. Raises
    ValueError when the threshold is no decimal above 0 and at most 1.
    """
    need = _positions(threshold)
    by_id = {item.id: item for item in dev.items}
    by_text: dict[str, list[Item]] = defaultdict(list)
    for item in dev.items:
        by_text[item.text].append(item)
    index = _index(dev.items, need)
    out = []
    for item in heldout.items:
        reported = set()
        if item.id in by_id:
            reported.add(item.id)
            out.append(f"{item.id!r} has the same id in {dev.name} and {heldout.name}")
        for other in by_text.get(item.text, []):
            if other.id not in reported:
                reported.add(other.id)
                out.append(f"{item.id!r} of {heldout.name} has the text of {other.id!r} of {dev.name}")
        near = {o.id: o for band in _bands(item, need) for o in index.get(band, []) if o.id not in reported}
        for other in sorted(near.values(), key=lambda o: o.id):
            if (agree := agreement(item, other)) >= need:
                out.append(
                    f"{item.id!r} of {heldout.name} is a near-duplicate of {other.id!r} of {dev.name} "
                    f"({agree} of {HASHES} sketch positions agree, {need} are enough)"
                )
    return out


def agreement(a: Item, b: Item) -> int:
    """On how many positions two sketches agree."""
    return sum(a.minhash[i : i + 8] == b.minhash[i : i + 8] for i in range(0, 8 * HASHES, 8))


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


def _index(items: list[Item], need: int) -> dict[tuple[int, str], list[Item]]:
    index: dict[tuple[int, str], list[Item]] = defaultdict(list)
    for item in items:
        for band in _bands(item, need):
            index[band].append(item)
    return index
