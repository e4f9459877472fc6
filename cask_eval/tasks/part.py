"""Cutting one set of problems into a dev and a held-out part, by a rule that anyone can follow again."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Any

from cask_eval.tasks import Problem

PARTS = ("all", "dev", "heldout")
#: The parameters that `cut` reads.
FIELDS = ("part", "dev", "seed", "skip", "take")

RULE = (
    "Of each stratum with n of the N problems, the integer part of n·D/N goes to dev, and the seats that are left go "
    "to the strata with the largest remainders, of equal ones to the first in the order of their names (Unicode code "
    'points). Within a stratum those problems go to dev whose SHA-256 of "SEED/ID" (UTF-8) is smallest. File order is '
    "kept. D = {dev}, SEED = {seed}; this is the {part} part."
)
TAKEN = (
    ' Of it, in the order of the SHA-256 of "SEED/take/ID", only {take} problems after the first {skip}; file order is kept.'
)


def cut(problems: Sequence[Problem], params: Mapping[str, Any]) -> list[Problem]:
    """The part of `problems` that ``part`` names (``all`` where it is missing); ``dev`` is the size of the dev part,
    ``seed`` decides which problems it gets. Of a part ``take`` problems after the first ``skip`` may be asked for, so
    that a small study can have its own. Raises ValueError."""
    return _taken(_part(problems, params), params)


def _taken(problems: list[Problem], params: Mapping[str, Any]) -> list[Problem]:
    if "take" not in params:
        if "skip" in params:
            raise ValueError("skip needs take; say how many problems are wanted after them")
        return problems
    if params.get("part", "all") == "all":
        raise ValueError("take needs a part, dev or heldout, whose seed it uses")
    take, skip = whole(params, "take", 1), whole(params, "skip", 0) if "skip" in params else 0
    if skip + take > len(problems):
        raise ValueError(f"skip {skip} and take {take} ask for more than the {len(problems)} problems of the part")
    seed = params["seed"]
    order = sorted(problems, key=lambda p: hashlib.sha256(f"{seed}/take/{p.id}".encode()).digest())
    chosen = {p.id for p in order[skip : skip + take]}
    return [p for p in problems if p.id in chosen]


def _part(problems: Sequence[Problem], params: Mapping[str, Any]) -> list[Problem]:
    part = params.get("part", "all")
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; use {', '.join(PARTS)}")
    if part == "all":
        return list(problems)
    size, seed = whole(params, "dev", 1, len(problems) - 1), whole(params, "seed", 0)
    strata: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        strata[problem.stratum].append(problem)
    shares = {name: Fraction(len(own) * size, len(problems)) for name, own in strata.items()}
    seats = {name: floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: (seats[name] - shares[name], name))
    for name in by_remainder[: size - sum(seats.values())]:
        seats[name] += 1
    chosen = set()
    for name, own in strata.items():
        drawn = sorted(own, key=lambda p: hashlib.sha256(f"{seed}/{p.id}".encode()).digest())
        chosen |= {p.id for p in drawn[: seats[name]]}
    return [p for p in problems if (p.id in chosen) == (part == "dev")]


def rule(params: Mapping[str, Any]) -> str:
    """The rule in words, with its numbers."""
    if params.get("part", "all") == "all":
        return "All problems, in file order."
    stated = RULE.format(dev=params["dev"], seed=params["seed"], part=params["part"])
    return stated + (TAKEN.format(take=params["take"], skip=params.get("skip", 0)) if "take" in params else "")


def whole(params: Mapping[str, Any], field: str, low: int, high: int | None = None) -> int:
    """A parameter that is a whole number. Raises ValueError."""
    value = params.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limit = f"from {low} to {high}" if high is not None else f"of {low} or more"
        raise ValueError(f"{field} is {value!r}; give a whole number {limit}")
    return value
