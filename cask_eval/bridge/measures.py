"""What is measured of a pair of outputs, and of all pairs together, with intervals by problem.

Nothing here was registered: the figures describe, they decide nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from cask_eval.bridge import likeness
from cask_eval.bridge.rows import Joined, Output
from cask_eval.bridge.tokens import characters, tokens
from cask_eval.splits.freeze import normalise
from cask_eval.stats.bootstrap import B
from cask_eval.stats.off_lattice import bootstrap_interval

__all__ = ["ALIKE", "SIDES", "Pair", "Scale", "Summary", "measure", "summarise"]

#: What a pair has one number of: how alike its outputs are.
ALIKE = {
    "lcs_ratio": "longest common subsequence of tokens over the longer output",
    "sequence_ratio": "difflib's ratio of these tokens: 2 × matched over both lengths, frequent tokens start no block",
    "prefix_tokens": "common prefix in tokens over the longer output",
    "prefix_characters": "common prefix in characters over the longer output",
    "prefix_ids": "common prefix in the model's own tokens over the longer output",
    "exact_match": "same text",
    "normalised_match": "same text but for Unicode form, case and white space",
    "answer_match": "same answer, where the reference has one",
    "semantic": "cosine of sentence embeddings",
}
#: What each of the two outputs has a number of.
SIDES = {
    "right": "right, as the grader says",
    "score": "the task's own metric",
    "answered": "an answer was found",
    "truncated": "cut off by the length limit",
    "repetition": "share of 4-grams of tokens that have occurred before",
    "tokens": "length in tokens",
}
#: Whether two outputs answer the same: None where the reference answers nothing.
Same = Callable[[Output, Output], bool | None]
#: A score of one output by the task's metric; None where there is none.
Score = Callable[[Output], Fraction | None]

LEVEL = Fraction(95, 100)


@dataclass(frozen=True)
class Scale:
    """How answers are read and judged. metric: the name of the task's own metric, empty where it has none."""

    same: Same | None = None
    answered: Callable[[Output], bool] | None = None
    right: Callable[[Output], bool | None] | None = None
    score: Score | None = None
    metric: str = ""


@dataclass(frozen=True)
class Pair:
    """One pair. alike: numbers by the names of `ALIKE`. candidate, reference: by those of `SIDES`. A number that cannot
    be told is missing."""

    key: tuple[str, ...]
    alike: dict[str, Fraction]
    candidate: dict[str, Fraction]
    reference: dict[str, Fraction]


@dataclass(frozen=True)
class Mean:
    """A mean over problems of the means over their pairs, and its interval. pairs: how many pairs had the number."""

    mean: float
    low: float
    high: float
    pairs: int
    problems: int


@dataclass(frozen=True)
class Side:
    """A number that both outputs have: both means, and candidate minus reference with its paired interval."""

    candidate: float
    reference: float
    difference: Mean


@dataclass(frozen=True)
class Summary:
    pairs: int
    problems: int
    level: float
    alike: dict[str, Mean] = field(default_factory=dict)
    sides: dict[str, Side] = field(default_factory=dict)


def measure(joined: Joined, scale: Scale, semantic: Sequence[float] | None = None) -> list[Pair]:
    """The numbers of every pair, in order; `semantic` are the cosines of the pairs."""
    out = []
    for i, (ours, theirs) in enumerate(joined.pairs):
        a, b = tokens(ours.text), tokens(theirs.text)
        alike = {
            "lcs_ratio": likeness.lcs_ratio(a, b),
            "sequence_ratio": likeness.sequence_ratio(a, b),
            "prefix_tokens": likeness.prefix_ratio(a, b),
            "prefix_characters": likeness.prefix_ratio(characters(ours.text), characters(theirs.text)),
            "exact_match": Fraction(ours.text == theirs.text),
            "normalised_match": Fraction(normalise(ours.text) == normalise(theirs.text)),
        }
        if ours.ids is not None and theirs.ids is not None:
            alike["prefix_ids"] = likeness.prefix_ratio(ours.ids, theirs.ids)
        if scale.same is not None and (same := scale.same(ours, theirs)) is not None:
            alike["answer_match"] = Fraction(same)
        if semantic is not None:
            alike["semantic"] = Fraction(semantic[i])
        out.append(Pair(ours.key, alike, _side(ours, a, scale), _side(theirs, b, scale)))
    return out


def summarise(pairs: Sequence[Pair], level: Fraction = LEVEL, *, seed: int = 0, replicates: int = B) -> Summary:
    """Means and percentile bootstrap intervals, resampled by problem. Raises ValueError on a level outside (0, 1) and
    when `replicates` are too few for it."""
    drawn = {"level": level, "seed": seed, "replicates": replicates}

    def values(name: str, of: Callable[[Pair], dict[str, Fraction]]) -> dict[str, list[Fraction]]:
        found: dict[str, list[Fraction]] = defaultdict(list)
        for pair in pairs:
            if name in of(pair):
                found[pair.key[0]].append(of(pair)[name])
        return found

    alike = {name: values(name, lambda p: p.alike) for name in ALIKE}
    sides = {}
    for name in SIDES:
        both = [p for p in pairs if name in p.candidate and name in p.reference]
        if both:
            change: dict[str, list[Fraction]] = defaultdict(list)
            for p in both:
                change[p.key[0]].append(p.candidate[name] - p.reference[name])
            ours, theirs = (
                [(p.key[0], side[name]) for p, side in ((p, getattr(p, which)) for p in both)]
                for which in ("candidate", "reference")
            )
            sides[name] = Side(_flat(ours), _flat(theirs), _mean(change, **drawn))
    return Summary(
        pairs=len(pairs),
        problems=len({p.key[0] for p in pairs}),
        level=float(level),
        alike={name: _mean(found, **drawn) for name, found in alike.items() if found},
        sides=sides,
    )


def _mean(by_problem: dict[str, list[Fraction]], level: Fraction, **drawn: Any) -> Mean:
    means = [sum(own, Fraction(0)) / len(own) for own in by_problem.values()]
    low, high = bootstrap_interval(means, level, **drawn)
    middle = float(sum(means, Fraction(0)) / len(means))
    return Mean(middle, low, high, sum(map(len, by_problem.values())), len(means))


def _flat(values: Sequence[tuple[str, Fraction]]) -> float:
    """The mean over problems of the means over their pairs."""
    by_problem: dict[str, list[Fraction]] = defaultdict(list)
    for problem, value in values:
        by_problem[problem].append(value)
    return float(sum((sum(own, Fraction(0)) / len(own) for own in by_problem.values()), Fraction(0)) / len(by_problem))


def _side(one: Output, own: Sequence[str], scale: Scale) -> dict[str, Fraction]:
    out = {"repetition": likeness.repetition(own), "tokens": Fraction(len(own))}
    if one.status is not None:
        out["truncated"] = Fraction(one.status == "truncated")
    if scale.answered is not None:
        out["answered"] = Fraction(scale.answered(one))
    if scale.right is not None and (right := scale.right(one)) is not None:
        out["right"] = Fraction(right)
    if scale.score is not None and (found := scale.score(one)) is not None:
        out["score"] = found
    return out
