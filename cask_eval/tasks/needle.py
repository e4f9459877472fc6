"""The needle task: numbers of several names, hidden in a long text that says nothing else (needle in a haystack, with
the many keys and many questions of RULER, https://arxiv.org/abs/2404.06654; own text and code).

``The number of the amber falcon is 4821.`` is a needle. All needles look alike and only some are asked for, so the
others are distractors. The question stands behind the text, and with ``query: both`` also before it: a method that
compresses the prompt without knowing the question is tested by the former only.

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
GRADER = "needle-exact/1"

QUERIES = ("after", "both")
_OWN = ("seed", "start", "count")


@dataclass(frozen=True)
class Difficulty:
    """words: length of the whole prompt in words, of which at most 16 are left over (SmolLM2's tokenizer makes about
    1.2 tokens of a word). needles: names with a number. asked: how many of them are asked for. depth: where the needles
    stand, in percent of the text; -1 spreads them. query: whether the question stands behind the text only (``after``)
    or before it too (``both``)."""

    words: int = 1000
    needles: int = 4
    asked: int = 1
    depth: int = -1
    query: str = "after"

    def __post_init__(self) -> None:
        params = vars(self)
        part.whole(params, "words", 100, 100_000)
        part.whole(params, "needles", 1, 400)
        part.whole(params, "asked", 1, min(self.needles, 16))
        part.whole(params, "depth", -1, 100)
        if self.query not in QUERIES:
            raise ValueError(f"query is {self.query!r}; use one of {', '.join(QUERIES)}")

    @property
    def tag(self) -> str:
        """Short text for ids and seeding, such as ``w1000n4a1`` (``d50`` where the needles stand together)."""
        depth = f"d{self.depth}" if self.depth >= 0 else ""
        return f"w{self.words}n{self.needles}a{self.asked}{depth}{'' if self.query == 'after' else 'both'}"


def problem(seed: int, index: int, difficulty: Difficulty) -> Problem:
    """Problem `index` of stream `seed`. Raises ValueError when needles and question alone are longer than the text may
    be."""
    name = f"needle/{VERSION}/{difficulty.tag}/{seed}/{index}"
    rng = prose.stream(name)
    keys = prose.names(rng, difficulty.needles)
    numbers = [str(n) for n in rng.sample(range(1000, 10_000), difficulty.needles)]
    needles = [f"The number of the {key} is {number}." for key, number in zip(keys, numbers, strict=True)]
    asked = rng.sample(range(difficulty.needles), difficulty.asked)
    question = _question([keys[i] for i in asked])
    opening = f"{question} The text follows." if difficulty.query == "both" else "Read the text; a question follows it."
    what = "the number" if len(asked) == 1 else "the numbers in this order"
    closing = f"{question} Answer with {what} only.\nAnswer:"
    rest = difficulty.words - len(opening.split()) - len(closing.split())
    depth = None if difficulty.depth < 0 else difficulty.depth
    text = prose.woven(rng, needles, rest, depth)
    answer = " ".join(numbers[i] for i in asked)
    return Problem(name, f"{opening}\n\n{text}\n\n{closing}", answer, difficulty.tag)


def describe(params: Mapping[str, object]) -> tuple[dict[str, object], str]:
    """(`source` in full, the rule in words) for a manifest."""
    difficulty, seed, start, count = _read(params)
    source = {**vars(difficulty), "seed": seed, "start": start, "count": count}
    return source, f"Problems {start} to {start + count - 1} of stream {seed} of the needle task, version {VERSION}."


def problems(params: Mapping[str, object]) -> list[Problem]:
    """The problems that `params` describe: ``seed``, ``count``, optionally ``start`` (first index, 0) and the fields of
    `Difficulty`. Raises ValueError."""
    difficulty, seed, start, count = _read(params)
    return [problem(seed, index, difficulty) for index in range(start, start + count)]


def grade(problem: Problem, output: str) -> Grade:
    """Whether the first line with text holds the numbers that were asked for, in order, and no other number."""
    said = line.first(output)
    found = line.numbers_in(said)
    if not found:
        return Grade(False, None, "none" if found is not None or not said else "malformed", GRADER)
    extracted = " ".join(found)
    return Grade(extracted == problem.answer, extracted, "line", GRADER)


def _question(keys: list[str]) -> str:
    if len(keys) == 1:
        return f"What is the number of the {keys[0]}?"
    listed = ", ".join(f"the {key}" for key in keys[:-1]) + f" and the {keys[-1]}"
    return f"What are the numbers of {listed}?"


def _read(params: Mapping[str, object]) -> tuple[Difficulty, int, int, int]:
    hard = [f.name for f in fields(Difficulty)]
    for name in params:
        if name not in (*_OWN, *hard):
            raise ValueError(f"{name} is no parameter of the needle task; use {', '.join((*_OWN, *hard))}")
    own = {"start": 0, **params}
    numbers = [part.whole(own, name, low) for name, low in (("seed", 0), ("start", 0), ("count", 1))]
    return Difficulty(**{k: params[k] for k in hard if k in params}), *numbers  # type: ignore[arg-type]
