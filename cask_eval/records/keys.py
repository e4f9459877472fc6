"""The keys of many records in few bytes: a study has a million of them, and a thousand different texts in them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence, Set

import numpy as np

from cask_eval.protocol.keys import Key

# Problems that share an entry of `KeySet`, as the bits of a number.
_BLOCK = 512

Place = tuple[str, str, str, str]


class Names:
    """The places (phase, cell, arm, configuration) and problems that keys are made of, by number. Several `Keys` may
    share one."""

    def __init__(self) -> None:
        self.places: dict[Place, int] = {}
        self.problems: dict[str, int] = {}
        self.place_of: list[Place] = []
        self.problem_of: list[str] = []

    def place(self, place: Place) -> int:
        found = self.places.setdefault(place, len(self.places))
        if found == len(self.place_of):
            self.place_of.append(place)
        return found

    def problem(self, problem: str) -> int:
        found = self.problems.setdefault(problem, len(self.problems))
        if found == len(self.problem_of):
            self.problem_of.append(problem)
        return found


class Keys(Sequence[Key]):
    """Keys in the order in which they are added, sixteen bytes each beside their `names`."""

    def __init__(self, keys: Iterable[Key] = (), names: Names | None = None) -> None:
        self.names = Names() if names is None else names
        self.places, self.problems, self.samples = array("I"), array("I"), array("q")
        for key in keys:
            self.append(key)

    def append(self, key: Key) -> None:
        self.places.append(self.names.place(key[:4]))
        self.problems.append(self.names.problem(key[4]))
        self.samples.append(key[5])

    def extend(self, places: Iterable[int], problems: Iterable[int], samples: Iterable[int]) -> None:
        """Keys by their numbers in `names`."""
        self.places.extend(places)
        self.problems.extend(problems)
        self.samples.extend(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place, problem = self.names.place_of[self.places[index]], self.names.problem_of[self.problems[index]]
        return (*place, problem, self.samples[index])

    def __iter__(self) -> Iterator[Key]:
        place_of, problem_of = self.names.place_of, self.names.problem_of
        for place, problem, sample in zip(self.places, self.problems, self.samples):
            yield (*place_of[place], problem_of[problem], sample)

    def order(self, first: int = 0) -> np.ndarray:
        """The numbers of the keys from the first on, as `sorted` would have them by key."""
        places = _ranks(self.names.place_of)[np.asarray(self.places)[first:]]
        problems = _ranks(self.names.problem_of)[np.asarray(self.problems)[first:]]
        found = np.lexsort((np.asarray(self.samples)[first:], problems, places)).astype(np.uint32)
        found += np.uint32(first)
        return found


def _ranks(names: Sequence) -> np.ndarray:
    """Of each name the place that it has when they are sorted."""
    out = np.empty(len(names), np.uint32)
    out[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names), dtype=np.uint32)
    return out


class KeySet(Set):
    """Keys of which each is there once. Of a place and a sample, `_BLOCK` problems share an entry, which costs about a
    byte a key where a study has all of them, and as much as a key of its own where there is no other."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._problems: dict[str, int] = {}
        self._blocks: dict[tuple, int] = {}
        self._count = 0
        for key in keys:
            self.add(key)

    def add(self, key: Key) -> bool:
        """Whether the key was not there before."""
        block, bit = divmod(self._problems.setdefault(key[4], len(self._problems)), _BLOCK)
        where = (*key[:4], key[5], block)
        before = self._blocks.get(where, 0)
        self._blocks[where] = after = before | 1 << bit
        self._count += after != before
        return after != before

    def __contains__(self, key: object) -> bool:
        if key[4] not in self._problems:
            return False
        block, bit = divmod(self._problems[key[4]], _BLOCK)
        return bool(self._blocks.get((*key[:4], key[5], block), 0) >> bit & 1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Key]:
        names = list(self._problems)
        for (*place, sample, block), bits in self._blocks.items():
            for bit, problem in enumerate(names[block * _BLOCK : (block + 1) * _BLOCK]):
                if bits >> bit & 1:
                    yield (*place, problem, sample)
