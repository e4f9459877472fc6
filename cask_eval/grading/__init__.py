"""Grading: does an output answer what the reference says?

    with Grader() as grader:
        verdict = grader.grade(r"\\frac{1}{2}", r"… so the probability is \\boxed{0.5}.")

An answer is found by a declared rule (`ExtractionRule`, the last balanced box by default), brought to one spelling,
compared as what it is (number, interval, tuple, set, matrix, equation, words …), and handed to math-verify where none
of that can tell. Everything that looks into an answer runs in worker processes with limits on time and memory. A
failure of the grader has its own status and counts as wrong. docs/GRADING.md says what counts as equal.

Nothing here needs torch, and importing it imports no computer algebra.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import metadata

from cask_eval.grading.extract import ExtractionRule, Found, extract, read_gold
from cask_eval.grading.pool import Limits, Pool

__all__ = ["PINS", "VERSION", "ExtractionRule", "Found", "Grader", "Limits", "Verdict", "extract", "grade", "read_gold"]

#: The libraries that the last stage was measured with.
PINS = {"math-verify": "0.9.0", "latex2sympy2_extended": "1.11.0", "antlr4-python3-runtime": "4.13.2"}
PINS |= {"sympy": "1.14.0", "mpmath": "1.3.0"}


def _version() -> str:
    name = "cask-grade/2"
    for library, pinned in PINS.items():
        try:
            installed = metadata.version(library)
        except metadata.PackageNotFoundError:
            installed = "none"
        if installed != pinned:
            name += f"+{library}-{installed}"
    return name


#: Name and version of the grader, as records hold it. Whatever changes a verdict changes the number (a test holds the
#: digest of the verdicts over a fixed corpus); libraries other than the pinned ones are named behind it.
VERSION = _version()

_graders: weakref.WeakSet[Grader] = weakref.WeakSet()

#: Failures that another run may not meet again; they are not remembered.
_PASSING = {"deadline", "died", "out of step"}


@dataclass(frozen=True)
class Verdict:
    """What the grader says.

    `extracted` is the answer as it stands in the output (None: there was none) and `found` where it stood; `engine` is
    the stage that decided, `reason` its word. `failed` says that the grader could not do its work: then `correct` is
    False. `plain` is what math-verify alone would have said, None unless it was asked (or could not tell).
    `seconds` is the time that the decision took, no part of it.
    """

    correct: bool
    extracted: str | None
    found: str
    engine: str
    reason: str
    failed: bool = False
    plain: bool | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def status(self) -> str:
        return "failed" if self.failed else "graded"

    @property
    def how(self) -> str:
        """For records: where the answer was found and which stage decided, as ``boxed/number``."""
        return f"{self.found}/{self.engine}" + ("/failed" if self.failed else "")

    @property
    def differs(self) -> bool:
        """Whether math-verify alone was asked and says otherwise."""
        return self.plain is not None and self.plain != self.correct


class Grader:
    """The grader and its worker processes. Close it, or use it in a `with` statement; any thread may use it, and after
    a fork or in another process it starts workers of its own."""

    def __init__(self, workers: int | None = None, limits: Limits = Limits(), remember: int = 100_000):
        self.workers = workers or min(4, os.cpu_count() or 1)
        self.limits, self.remember = limits, remember
        self._pool = Pool(self.workers, limits)
        self._known: OrderedDict[str, dict] = OrderedDict()
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            _graders.add(self)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def __reduce__(self):
        return (Grader, (self.workers, self.limits, self.remember))

    def grade(
        self,
        gold: str,
        answer: str,
        *,
        rule: ExtractionRule | str = ExtractionRule.BOXED,
        integers: bool = False,
        compare: bool = False,
    ) -> Verdict:
        """Whether the output `answer` says what the reference `gold` says.

        `rule` says where the answer may stand. With `integers` only a whole number can be right (AIME). With `compare`,
        `plain` says what math-verify alone makes of the same two texts. Raises ValueError on an unknown rule.
        """
        began = time.perf_counter()
        found = extract(answer, rule)
        reference = read_gold(gold)
        if found.text is None:
            verdict = Verdict(False, None, found.where, "none", "no answer found")
        elif len(found.text) > _SENT or len(reference) > _SENT:
            verdict = Verdict(False, found.text[:_SENT], found.where, "none", "too long to be an answer")
        else:
            told = self._ask({"do": "decide", "gold": reference, "answer": found.text, "integers": integers})
            if "failure" in told:
                verdict = Verdict(False, found.text, found.where, "none", f"grader: {told['failure']}", failed=True)
            else:
                verdict = Verdict(
                    told["correct"], found.text, found.where, told["engine"], told["reason"], told["failed"]
                )
        if compare:
            verdict = replace(verdict, plain=self.plain(gold, answer))
        return replace(verdict, seconds=time.perf_counter() - began)

    def grade_many(
        self, pairs: Iterable[tuple[str, str]], *, rule: ExtractionRule | str = ExtractionRule.BOXED, **options: bool
    ) -> list[Verdict]:
        """`grade` of every (gold, answer), all workers at once; in the order given."""
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(lambda pair: self.grade(*pair, rule=rule, **options), pairs))

    def plain(self, gold: str, answer: str) -> bool | None:
        """What math-verify alone makes of a reference and an output; None where it passed a limit."""
        return self._ask({"do": "plain", "gold": gold[-_SENT:], "answer": answer[-_SENT:]}).get("plain")

    def same(self, a: str, b: str) -> bool:
        """Whether two extracted answers are one, `a` as the reference: what a vote over chains needs."""
        told = self._ask({"do": "decide", "gold": a, "answer": b, "integers": False})
        return bool(told.get("correct"))

    def _ask(self, request: dict) -> dict:
        """A worker's word on a request, remembered by the request's digest."""
        try:
            key = hashlib.sha256(json.dumps([VERSION, request], sort_keys=True).encode("ascii")).hexdigest()
        except (UnicodeEncodeError, ValueError):
            return {"failure": "not a text"}
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        reply = self._pool.ask(request)
        told = reply.value if reply.value is not None else {"failure": reply.failure}
        if reply.failure not in _PASSING:
            with self._lock:
                self._known[key] = told
                while len(self._known) > self.remember:
                    self._known.popitem(last=False)
        return told


#: The longest text, in characters, that goes to a worker.
_SENT = 16_384

_shared: Grader | None = None
_shared_lock = threading.Lock()


def grade(
    gold: str,
    answer: str,
    *,
    rule: ExtractionRule | str = ExtractionRule.BOXED,
    integers: bool = False,
    compare: bool = False,
) -> Verdict:
    """`Grader.grade`, by one grader that the whole process shares."""
    return shared().grade(gold, answer, rule=rule, integers=integers, compare=compare)


def shared() -> Grader:
    """The grader that the whole process shares."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Grader()
        return _shared


def _forked() -> None:
    """In a child, locks that other threads of the parent may have held are new."""
    global _shared_lock
    _shared_lock = threading.Lock()
    for grader in list(_graders):
        grader._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
