"""The chain task: walk shuffled definitions, keep three registers up to date, report them.

A prompt is a shuffled list of definitions and a question::

    C: f, 17 y; A: c, 31 x; K: d, 22 z; F: stop, 40 y; trace a,

``C: f, 17 y;`` reads "at C: the next node is f; 17 goes into register y". The question gives the node to start
from, and its verb says how often the scratchpad sums up all registers: ``walk`` never, ``trace`` whenever z was
written, ``track`` after every node. The scratchpad visits one node after another, says what the register held
before and what it holds after, and ends with ``answer x 31 y 40 z 22``.

Which definition comes next, and what a register held before, stands only in the text the model has already
written (the definitions themselves stand in the prompt): a cache that drops the wrong generated entries breaks the
walk. Within one prompt every key, every pointer and every number occurs once, so that no look-up is ambiguous;
distractor definitions are never visited.

Everything is a pure function of (difficulty, seed, index): see `problem`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from cask_eval.tasks import Grade, Problem

__all__ = [
    "DEMO",
    "GRADER",
    "LETTERS",
    "MARKER",
    "NUMBERS",
    "RECAPS",
    "REGISTERS",
    "VERSION",
    "WORDS",
    "Difficulty",
    "grade",
    "problem",
    "problems",
    "scratchpad",
    "vocabulary",
]

#: Version of the text format and of the sampling. A change to either needs a new number.
VERSION = 1
#: Name and version of the grader, as written into every `Grade`.
GRADER = "chain-exact/1"
#: The word that introduces the final answer.
MARKER = "answer"

REGISTERS = ("x", "y", "z")
LETTERS = tuple("abcdefghijklmnop")
NUMBERS = tuple(str(n) for n in range(10, 42))
#: When the scratchpad sums up all registers, and the verb of the question that says so.
RECAPS = {"never": "walk", "z": "trace", "always": "track"}
_VERBS = {verb: recap for recap, verb in RECAPS.items()}
_NOISE = ("also", "note", "well", "hence")
_STOP = "stop,"

#: Words of the prompt and scratchpad that are neither keys, pointers, numbers nor registers.
WORDS = (
    *RECAPS.values(),
    *_NOISE,
    _STOP,
    "begin",
    "with",
    "we",
    "are",
    "at",
    "so",
    "read",
    "which",
    "means",
    "that",
    "before",
    "and",
    "after",
    ".",
    "then",
    "go",
    "to",
    "in",
    "sum",
    MARKER,
    "0",
)


def _check_int(field: str, value: object, low: int, high: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field} is {value!r}; give a whole number")
    if value < low or (high is not None and value > high):
        limit = f"between {low} and {high}" if high is not None else f"of {low} or more"
        raise ValueError(f"{field} is {value}; give a whole number {limit}")
    return value


@dataclass(frozen=True)
class Difficulty:
    """How hard a problem is. The defaults are the demo difficulty.

    `variables`: nodes on the path; `distractors`: further definitions that are never visited; `noise`: filler words
    between definitions; `recap`: when the scratchpad sums up all registers (``never``, ``z``, ``always``).
    """

    variables: int = 7
    distractors: int = 1
    noise: int = 0
    recap: str = "z"

    def __post_init__(self) -> None:
        _check_int("variables", self.variables, 3, 10)
        _check_int("distractors", self.distractors, 0, 5)
        _check_int("noise", self.noise, 0, 16)
        if self.recap not in RECAPS:
            raise ValueError(f"recap is {self.recap!r}; use one of {', '.join(RECAPS)}")

    @property
    def tag(self) -> str:
        """Short text for ids and seeding, such as ``v7d2n0z``."""
        return f"v{self.variables}d{self.distractors}n{self.noise}{self.recap}"


#: The difficulty of the demo studies.
DEMO = Difficulty()


def problem(seed: int, index: int, difficulty: Difficulty = DEMO) -> Problem:
    """Problem `index` of stream `seed`: the same text on every machine and Python version."""
    _check_int("seed", seed, 0, None)
    _check_int("index", index, 0, None)
    name = f"chain/{VERSION}/{difficulty.tag}/{seed}/{index}"
    rng = random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"))
    n, d = difficulty.variables, difficulty.distractors
    letters = rng.sample(LETTERS, n + d + 1)
    numbers = rng.sample(NUMBERS, n + d)
    path, off = letters[:n], letters[n:]
    # Every register is written at least once on the path, so that no part of the answer is its initial value.
    writes = [*REGISTERS, *(REGISTERS[rng.randrange(3)] for _ in range(n - 3))]
    rng.shuffle(writes)
    writes += [REGISTERS[rng.randrange(3)] for _ in range(d)]
    keys = [*path, *off[:d]]
    pointers = [*(f"{p}," for p in path[1:]), _STOP, *(f"{p}," for p in off[1:])]
    pieces = [
        f"{key.upper()}: {pointer} {number} {register};"
        for key, pointer, number, register in zip(keys, pointers, numbers, writes, strict=True)
    ]
    rng.shuffle(pieces)
    for _ in range(difficulty.noise):
        pieces.insert(rng.randrange(len(pieces) + 1), _NOISE[rng.randrange(len(_NOISE))])
    prompt = " ".join([*pieces, RECAPS[difficulty.recap], f"{path[0]},"])
    final = dict(zip(writes[:n], numbers[:n], strict=True))
    answer = " ".join(f"{r} {final[r]}" for r in REGISTERS)
    return Problem(id=name, prompt=prompt, answer=answer, stratum=difficulty.tag)


def problems(params: Mapping[str, object]) -> list[Problem]:
    """The problems that `params` describe.

    Needed: ``seed`` and ``count``. Optional: ``start`` (first index, 0) and the fields of `Difficulty`.
    """
    known = ("seed", "start", "count", "variables", "distractors", "noise", "recap")
    for field in params:
        if field not in known:
            raise ValueError(f"{field} is no parameter of the chain task; use {', '.join(known)}")
    for field in ("seed", "count"):
        if field not in params:
            raise ValueError(f"{field} is missing; the chain task needs seed and count")
    seed = _check_int("seed", params["seed"], 0, None)
    start = _check_int("start", params.get("start", 0), 0, None)
    count = _check_int("count", params["count"], 1, None)
    difficulty = Difficulty(**{k: params[k] for k in known[3:] if k in params})  # type: ignore[arg-type]
    return [problem(seed, index, difficulty) for index in range(start, start + count)]


def scratchpad(item: Problem | str) -> str:
    """The reference completion (steps and answer) of a problem, worked out from its prompt alone."""
    prompt = item if isinstance(item, str) else item.prompt
    words = [w for w in prompt.split() if w not in _NOISE]
    recap, pointer = _VERBS[words[-2]], words[-1]
    table = {words[i]: (words[i + 1], words[i + 2], words[i + 3]) for i in range(0, len(words) - 2, 4)}
    state = dict.fromkeys(REGISTERS, "0")

    def summary() -> str:
        return " ".join(f"{r} {v}" for r, v in state.items())

    out = [f"begin with {summary()} ."]
    while pointer != _STOP:
        key = pointer[0].upper() + ":"
        following, number, write = table[key]
        register = write[0]
        out.append(
            f"we are at {pointer} so we read {key} {following} {number} {write} which means that "
            f"before {register} {state[register]} and after {register} {number} . then we go to {following} ."
        )
        state[register] = number
        if recap == "always" or (recap == "z" and register == "z"):
            out.append(f"in sum {summary()} .")
        pointer = following
    out.append(f"{MARKER} {summary()}")
    return " ".join(out)


def vocabulary() -> list[str]:
    """Every word that a prompt or scratchpad can hold, in a fixed order."""
    return [
        *WORDS,
        *REGISTERS,
        *(f"{r};" for r in REGISTERS),
        *(f"{c.upper()}:" for c in LETTERS),
        *(f"{c}," for c in LETTERS),
        *NUMBERS,
    ]


def grade(problem: Problem, output: str) -> Grade:
    """Exact match of the answer that `output` ends with.

    The output must hold the marker exactly once, and after it nothing but ``x N y N z N``. Anything else is wrong:
    no or an unfinished answer (``none``), several markers (``ambiguous``), other or further text (``malformed``).
    """
    words = output.split()
    found = [i for i, w in enumerate(words) if w == MARKER]
    if not found:
        return Grade(False, None, "none", GRADER)
    if len(found) > 1:
        return Grade(False, None, "ambiguous", GRADER)
    tail = words[found[0] + 1 :]
    shaped = all(w in NUMBERS or w == "0" if i % 2 else w == REGISTERS[i // 2] for i, w in enumerate(tail[:6]))
    if not shaped or len(tail) > 6:
        return Grade(False, None, "malformed", GRADER)
    if len(tail) < 6:
        return Grade(False, None, "none", GRADER)
    extracted = " ".join(tail)
    return Grade(extracted == problem.answer, extracted, "marker", GRADER)
