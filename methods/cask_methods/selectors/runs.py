"""Greedy merging of adjacent scratch entries within runs (CASK, docs/DEFINITIONS.md §6)."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass

import numpy as np
from torch import Tensor

_STEPS = 1 << 20
_NEAR = 1 << 22
_NEVER = -(1 << 40)


@dataclass(frozen=True)
class Rule:
    """Which adjacent pair goes first, and which may never become one.

    Near pairs go before others, and of those the pair of the highest cosine, of equal ones the first; a pair is near
    when its spans lie at most `window` positions apart, or with None always. (The published tiers are 2 for near pairs
    whose cosine reaches a threshold, 1 for other near ones, 0 for the rest. Within a tier the cosine decides, and near
    pairs above the threshold beat those below it by their cosines already: the order is the same for every threshold.)
    Cosines are compared in steps of 2^-20, so that rounding does not decide between keys that are alike.

    gate: [R], the highest sum of scores that a merged descriptor may have, inf for none. distance: the largest mean
    distance, over layers and KV heads, between two descriptors' values; 0 for none. cosine: the least one; -inf for
    none.
    """

    window: int | None
    gate: Tensor | None = None
    distance: float = 0.0
    cosine: float = -math.inf

    @property
    def vetoes(self) -> bool:
        return self.gate is not None or bool(self.distance) or self.cosine > -math.inf


@dataclass(frozen=True)
class Scratch:
    """M adjacent entries of R sequences. direction: [R, M, D] floating, the keys whose cosines count. mass, score:
    [R, M] fp64. low, high: [R, M] int64, first and last position an entry stands for. values: [R, M, heads, D], needed
    only for a distance."""

    direction: Tensor
    mass: Tensor
    score: Tensor
    low: Tensor
    high: Tensor
    values: Tensor | None = None


@dataclass(frozen=True)
class Descriptors:
    """starts: [R, M] bool, the first entry of every descriptor. mass, low, high: [R, M], at the starts: the sum of
    masses and the union of spans. short: [R] int64, how many of the merges asked for were not possible."""

    starts: Tensor
    mass: Tensor
    low: Tensor
    high: Tensor
    short: Tensor


def merge_adjacent(scratch: Scratch, member: Tensor, link: Tensor, merges: Tensor, rule: Rule) -> Descriptors:
    """Merge `merges` [R] pairs in every row, one after the other, as far as there are any. All tensors are on the host:
    these are many steps of very little work, which a device would spend its time starting.

    member: [R, M] bool, the entries that take part. link: [R, M] bool, whether an entry and the next one, both members,
    belong to one run. A descriptor's direction and values are the means of its members' by mass.
    """
    starts, mass, low, high, short = (x.clone() for x in (member, scratch.mass, scratch.low, scratch.high, merges))
    directions, values = scratch.direction * mass.unsqueeze(-1), None
    if rule.distance:
        values = (scratch.values * mass[..., None, None].to(scratch.values.dtype)).numpy()
    for row, wanted in enumerate(merges.tolist()):
        chain = _Chain(
            rule=rule,
            gate=math.inf if rule.gate is None else float(rule.gate[row]),
            directions=list(directions[row].numpy()),
            values=None if values is None else values[row],
            score=scratch.score[row].tolist(),
            starts=starts[row].numpy(),
            mass=mass[row].numpy(),
            low=low[row].numpy(),
            high=high[row].numpy(),
            links=link[row].tolist(),
        )
        while wanted and chain.merge():
            wanted -= 1
        short[row] = wanted
    return Descriptors(starts, mass, low, high, short)


@dataclass
class _Chain:
    """The descriptors of one sequence, each under the number of its first entry; `merge` changes all in place.

    directions, values: sums over a descriptor's members, weighted by mass. links: whether an entry and the next one
    belong to one run. size: squared lengths of the directions. after, before: the neighbours within the run, -1 for
    none. keys: priorities of a descriptor's merger with the next one.
    """

    rule: Rule
    gate: float
    directions: list[np.ndarray]
    values: np.ndarray | None
    score: list[float]
    starts: np.ndarray
    mass: np.ndarray
    low: np.ndarray
    high: np.ndarray
    links: InitVar[list[bool]]

    def __post_init__(self, links: list[bool]) -> None:
        self.size = [float(x.dot(x)) for x in self.directions]
        self.after = [j + 1 if linked else -1 for j, linked in enumerate(links)]
        self.before = [-1, *(j if linked else -1 for j, linked in enumerate(links[:-1]))]
        self.keys = np.array([self.key(j) for j in range(len(links))])

    def key(self, left: int) -> int:
        """The priority of merging `left` with the next one."""
        right, rule = self.after[left], self.rule
        if right < 0:
            return _NEVER
        scale = math.sqrt(self.size[left] * self.size[right])
        cosine = round(float(self.directions[left].dot(self.directions[right])) / scale * _STEPS) if scale else 0
        if cosine < rule.cosine * _STEPS or self.score[left] + self.score[right] > self.gate:
            return _NEVER
        if self.values is not None:
            a, b = (self.values[j] / np.float32(self.mass[j]) for j in (left, right))
            if np.linalg.norm(a - b, axis=-1).mean() > rule.distance:
                return _NEVER
        near = rule.window is None or self.low[right] - self.high[left] <= rule.window
        return _NEAR + cosine if near else cosine

    def merge(self) -> bool:
        """Merge the first pair of the highest priority; False when there is none."""
        left = int(self.keys.argmax())
        if self.keys[left] == _NEVER:
            return False
        right = self.after[left]
        self.directions[left] += self.directions[right]
        self.size[left] = float(self.directions[left].dot(self.directions[left]))
        if self.values is not None:
            self.values[left] += self.values[right]
        self.mass[left] += self.mass[right]
        self.score[left] += self.score[right]
        self.low[left] = min(self.low[left], self.low[right])
        self.high[left] = max(self.high[left], self.high[right])
        self.starts[right], self.keys[right] = False, _NEVER
        following, previous = self.after[right], self.before[left]
        self.after[left] = following
        if following >= 0:
            self.before[following] = left
        self.keys[left] = self.key(left)
        if previous >= 0:
            self.keys[previous] = self.key(previous)
        return True
