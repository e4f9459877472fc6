"""The tracking task: follow assignments through a long text (variable tracking, as in RULER,
https://arxiv.org/abs/2404.06654; own text and code).

``The amber falcon holds 4821.`` gives a name a number, ``The mellow otter holds what the amber falcon holds.`` passes
it on. Several chains of equal length are mixed, each in its order, and filler stands between the statements. Asked is
the number that the last name of one chain holds (``ask: value``), or which names hold a given number (``ask: names``).

Everything is a pure function of (difficulty, seed, index): see `problem`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from cask_eval.tasks import Grade, Problem, line, part, prose

__all__ = ["GRADER", "VERSION", "Difficulty", "describe", "grade", "problem", "problems"]

#: Version of the text and of the sampling. A change to either needs a new number.
VERSION = 1
#: Name and version of the grader.
GRADER = "tracking-exact/1"

ASKS = ("value", "names")
_OWN = ("seed", "start", "count")
_KNOWN = frozenset(f"{a} {n}" for a in prose.ADJECTIVES for n in prose.NOUNS)


@dataclass(frozen=True)
class Difficulty:
    """words: length of the whole prompt in words, of which at most 16 are left over. hops: how often each number is
    passed on. chains: numbers that are passed on, one of which is asked for. ask: ``value`` or ``names``."""

    words: int = 1000
    hops: int = 2
    chains: int = 2
    ask: str = "value"

    def __post_init__(self) -> None:
        params = vars(self)
        part.whole(params, "words", 100, 100_000)
        part.whole(params, "hops", 0, 16)
        part.whole(params, "chains", 1, 32)
        if self.ask not in ASKS:
            raise ValueError(f"ask is {self.ask!r}; use one of {', '.join(ASKS)}")

    @property
    def tag(self) -> str:
        """Short text for ids and seeding, such as ``w1000h2c2value``."""
        return f"w{self.words}h{self.hops}c{self.chains}{self.ask}"


def problem(seed: int, index: int, difficulty: Difficulty) -> Problem:
    """Problem `index` of stream `seed`. Raises ValueError when statements and question alone are longer than the text
    may be."""
    name = f"tracking/{VERSION}/{difficulty.tag}/{seed}/{index}"
    rng = prose.stream(name)
    length = difficulty.hops + 1
    keys = prose.names(rng, difficulty.chains * length)
    chains = [keys[i : i + length] for i in range(0, len(keys), length)]
    numbers = [str(n) for n in rng.sample(range(1000, 10_000), difficulty.chains)]
    # A shuffled list of chain numbers says whose statement comes next, so that each chain keeps its order.
    turns = [i for i in range(difficulty.chains) for _ in range(length)]
    rng.shuffle(turns)
    told = [0] * difficulty.chains
    facts = []
    for i in turns:
        chain, at = chains[i], told[i]
        source = numbers[i] if at == 0 else f"what the {chain[at - 1]} holds"
        facts.append(f"The {chain[at]} holds {source}.")
        told[i] += 1
    asked = rng.randrange(difficulty.chains)
    if difficulty.ask == "value":
        question = f"Which number does the {chains[asked][-1]} hold? Answer with the number only."
        answer = numbers[asked]
    else:
        question = f"Which ones hold {numbers[asked]}, directly or through others? Answer with their names only."
        answer = ", ".join(sorted(chains[asked]))
    opening, closing = "Read the text; a question follows it.", f"{question}\nAnswer:"
    rest = difficulty.words - len(opening.split()) - len(closing.split())
    text = prose.woven(rng, facts, rest)
    return Problem(name, f"{opening}\n\n{text}\n\n{closing}", answer, difficulty.tag)


def describe(params: Mapping[str, object]) -> tuple[dict[str, object], str]:
    """(`source` in full, the rule in words) for a manifest."""
    difficulty, seed, start, count = _read(params)
    source = {**vars(difficulty), "seed": seed, "start": start, "count": count}
    return source, f"Problems {start} to {start + count - 1} of stream {seed} of the tracking task, version {VERSION}."


def problems(params: Mapping[str, object]) -> list[Problem]:
    """The problems that `params` describe: ``seed``, ``count``, optionally ``start`` (first index, 0) and the fields of
    `Difficulty`. Raises ValueError."""
    difficulty, seed, start, count = _read(params)
    return [problem(seed, index, difficulty) for index in range(start, start + count)]


def grade(problem: Problem, output: str) -> Grade:
    """Whether the first line with text holds the one number, or exactly the names in any order, that the answer has."""
    said = line.first(output)
    if problem.answer.isdecimal():
        found = line.numbers_in(said)
        if not found:
            return Grade(False, None, "none" if found is not None or not said else "malformed", GRADER)
        extracted = " ".join(found)
    else:
        found = line.names_in(said, _KNOWN)
        if not found:
            return Grade(False, None, "none", GRADER)
        extracted = ", ".join(sorted(set(found)))
    return Grade(extracted == problem.answer, extracted, "line", GRADER)


def _read(params: Mapping[str, object]) -> tuple[Difficulty, int, int, int]:
    hard = [f.name for f in fields(Difficulty)]
    for name in params:
        if name not in (*_OWN, *hard):
            raise ValueError(f"{name} is no parameter of the tracking task; use {', '.join((*_OWN, *hard))}")
    own = {"start": 0, **params}
    numbers = [part.whole(own, name, low) for name, low in (("seed", 0), ("start", 0), ("count", 1))]
    return Difficulty(**{k: params[k] for k in hard if k in params}), *numbers  # type: ignore[arg-type]
