"""Corrections over a family that was registered. A p of None is an absent or void cell: it stays in the family
and counts as 1, so that losing a cell never makes the others easier."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def none(p: Sequence[float | None], m: int | None = None) -> list[float]:
    """No correction: the values themselves, None as 1."""
    return _filled(p, m)


def bonferroni(p: Sequence[float | None], m: int | None = None) -> list[float]:
    """min(1, m·p) (Dunn 1961). m is the registered family's size, at least len(p); None means len(p).

    Raises ValueError when m is smaller than len(p) or a p is outside [0, 1].
    """
    values = _filled(p, m)
    return [min(1.0, (m or len(values)) * v) for v in values]


def holm(p: Sequence[float | None], m: int | None = None) -> list[float]:
    """Step-down adjusted p: the running maximum of (m − i)·p₍ᵢ₎ over the sorted values (Holm 1979). Arguments and
    errors as in `bonferroni`; members of the family that are not listed count as 1 and rank last."""
    values = _filled(p, m)
    out, reached = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        reached = max(reached, min(1.0, ((m or len(values)) - rank) * values[i]))
        out[i] = reached
    return out


def all_of(p: Sequence[float | None], m: int | None = None) -> float:
    """p of "every one of them", such as non-inferiority in all cells: the largest (intersection–union test, Berger
    1982). Arguments and errors as in `bonferroni`, and ValueError on an empty family; a member that is not listed
    counts as 1.
    """
    values = _filled(p, m)
    if not values:
        raise ValueError("there is no p-value: at least one is needed")
    return max(values) if m in (None, len(values)) else 1.0


#: The protocol's name for each correction.
CORRECTIONS: dict[str, Callable[[Sequence[float | None], int | None], list[float]]] = {
    "none": none,
    "bonferroni": bonferroni,
    "holm": holm,
}


def _filled(p: Sequence[float | None], m: int | None) -> list[float]:
    if m is not None and m < len(p):
        raise ValueError(f"the family has {m} members, but {len(p)} p-values were given")
    values = [1.0 if v is None else float(v) for v in p]
    for v in values:
        if not 0 <= v <= 1:
            raise ValueError(f"{v} is not a p-value")
    return values
