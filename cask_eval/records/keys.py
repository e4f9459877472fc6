"""The keys of many records in few bytes: a study has a million of them, and a thousand different texts in them."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from typing import Any

import numpy as np

from cask_eval.protocol.keys import Key

# Problems that share an entry of `KeySet`, as the bits of a number.
_BLOCK = 512


class Numbers:
    """Values by number, in the order in which they first come. `values`: what each number stands for."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._of: dict[Hashable, int] = {}

    def of(self, value: Any, by: Hashable | None = None) -> int:
        """The number of a value, which is known by `by`, by default itself."""
        found = self._of.setdefault(value if by is None else by, len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found


class Names:
    """The places (phase, cell, arm, configuration) and problems that keys are made of. Several `Keys` may share one."""

    def __init__(self) -> None:
        self.places, self.problems = Numbers(), Numbers()


class Keys(Sequence[Key]):
    """Keys in the order in which they are added, sixteen bytes each beside their `names`."""

    def __init__(self, keys: Iterable[Key] = (), names: Names | None = None) -> None:
        self.names = Names() if names is None else names
        self.places, self.problems, self.samples = array("I"), array("I"), array("q")
        for key in keys:
            self.append(key)

    def append(self, key: Key) -> None:
        self.places.append(self.names.places.of(key[:4]))
        self.problems.append(self.names.problems.of(key[4]))
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
        place = self.names.places.values[self.places[index]]
        return (*place, self.names.problems.values[self.problems[index]], self.samples[index])

    def __iter__(self) -> Iterator[Key]:
        place_of, problem_of = self.names.places.values, self.names.problems.values
        for place, problem, sample in zip(self.places, self.problems, self.samples):
            yield (*place_of[place], problem_of[problem], sample)

    def order(self, first: int = 0) -> np.ndarray:
        """The numbers of the keys from the first on, as `sorted` would have them by key."""
        places = _ranks(self.names.places.values)[np.asarray(self.places)[first:]]
        problems = _ranks(self.names.problems.values)[np.asarray(self.problems)[first:]]
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
