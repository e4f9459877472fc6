"""The stages, in order, for one reference and one extracted answer. Runs in a worker process.

Each stage answers True, False or "cannot tell"; the first that tells decides, and its name is recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from cask_eval.grading import symbolic
from cask_eval.grading.answers import Answer, Expression, Sequence, Words, read
from cask_eval.grading.compare import same_answer
from cask_eval.grading.evaluate import rational
from cask_eval.grading.expression import FUNCTIONS
from cask_eval.grading.normalise import Token, tokens

__all__ = ["LONGEST", "Decision", "decide"]

#: The longest answer that is looked into, in characters.
LONGEST = 4_000


class Decision(NamedTuple):
    correct: bool
    engine: str
    reason: str
    failed: bool = False


def decide(gold: str, answer: str, integers: bool = False) -> Decision:
    """Whether `answer` says what `gold` says. With `integers` nothing but a whole number can be right."""
    return exact(gold, answer, integers) or last(gold, answer)


def exact(gold: str, answer: str, integers: bool = False) -> Decision | None:
    """The decision of the exact paths, None when they cannot tell."""
    if not gold.strip():
        return Decision(False, "none", "the reference is empty", failed=True)
    if not answer.strip():
        return Decision(False, "none", "the answer is empty")
    if len(gold) > LONGEST or len(answer) > LONGEST:
        same = gold.split() == answer.split()
        return Decision(same, "length", "the same text" if same else "too long to look into, and another text")
    g, a = tokens(gold), tokens(answer)
    if integers:
        return _integers(g, a)
    if not a:
        return Decision(False, "none", "the answer is empty")
    if _flat(g) == _flat(a):
        return Decision(True, "identical", "the same text")
    left, right = read(g), read(a)
    if (option := _option(g, a)) is not None:
        return option
    verdict, engine, reason = same_answer(left, right)
    if verdict is not True:
        # 1,234 is one number or two: read as the other side reads.
        for other_gold, other_answer in _readings(gold, answer, left, right):
            again, other_engine, other_reason = same_answer(other_gold, other_answer)
            if again is True:
                return Decision(True, other_engine, other_reason)
    if verdict is not None:
        return Decision(verdict, engine, reason)
    if isinstance(left, Words) or isinstance(right, Words):
        return Decision(False, "words", "different")
    return None


def last(gold: str, answer: str) -> Decision:
    """The decision of math-verify, or of the guard before it."""
    if len(gold) > symbolic.LONGEST or len(answer) > symbolic.LONGEST:
        return Decision(False, "guard", "too long for math-verify", failed=True)
    g, a = tokens(gold), tokens(answer)
    if _prose(a) and not _prose(g):
        return Decision(False, "words", "a sentence for something else")
    for side, items in (("reference", g), ("answer", a)):
        if why := symbolic.guard(items):
            return Decision(False, "guard", f"the {side} has {why}", failed=True)
    same, why = symbolic.verify(g, a)
    return Decision(same, "math-verify", why)


def _prose(items: list[Token]) -> bool:
    """Whether there are sentences: four words or more of three letters."""
    words = [w for t in items if t.kind in ("word", "text") for w in t.value.split()]
    return sum(len(w) > 2 and w.isalpha() and w not in FUNCTIONS for w in words) > 3


def _integers(g: list[Token], a: list[Token]) -> Decision:
    left, right = read(g), read(a)
    values = []
    for side in (left, right):
        if not isinstance(side, Expression) or side.tree[0] not in ("num", "neg"):
            return Decision(False, "integer", "no whole number")
        values.append(rational(side.tree))
    if any(v is None or v.denominator != 1 for v in values):
        return Decision(False, "integer", "no whole number")
    same = values[0] == values[1]
    return Decision(same, "integer", "equal" if same else "different")


def _flat(items: list[Token]) -> list[str]:
    """The tokens with words as words, set as text or not, in lower case where they have two letters or more, and
    without braces around one letter or digit."""
    out = []
    alone = [
        k
        for k in range(len(items) - 2)
        if items[k][:2] == ("op", "{") and items[k + 2][:2] == ("op", "}") and len(items[k + 1].value) == 1
    ]
    dropped = {k for start in alone for k in (start, start + 2)}
    for k, t in enumerate(items):
        if k in dropped:
            continue
        inside = tokens(t.value) if t.kind == "text" else [t]
        out += [f"{u.kind}:{u.value.casefold() if u.kind == 'word' and len(u.value) > 1 else u.value}" for u in inside]
    return out


_LABEL = re.compile(r"(?:(?:option|choice|answer) )?\(?([A-Ja-j])\)?", re.IGNORECASE)
_LABELLED = re.compile(r"\(([A-Ja-j])\)|([A-J])\s?[).:]")


def _option(gold: list[Token], answer: list[Token]) -> Decision | None:
    """Option letters: C is answered by c, (c), option C, and by (C) or C. with what option C says behind it; and the
    other way round."""
    texts = _plain(gold), _plain(answer)
    bare = [_LABEL.fullmatch(text) for text in texts]
    labels = [bare[k] or _LABELLED.match(texts[k]) for k in (0, 1)]
    if not all(labels) or not any(bare):
        return None
    want, got = (next(g for g in m.groups() if g) for m in labels)
    # A reference says by its case that it is an option: a is a name, and (a) a part.
    if not want.isupper():
        return None
    got = got.upper()
    return Decision(want == got, "option", "the option's letter" if want == got else "another option's letter")


def _plain(items: list[Token]) -> str:
    return "".join(f" {t.value}" if t.gap else t.value for t in items).strip().rstrip(".")


def _readings(gold: str, answer: str, left: Answer, right: Answer) -> Iterator[tuple[Answer, Answer]]:
    """Other readings of a comma, where the sides are a number and a list: 1,234 is one number or two, and a comma
    stands for the decimal point in much of the world."""
    if isinstance(left, Sequence) and isinstance(right, Expression) and "," in answer:
        yield left, read(tokens(answer, lists=True))
    if isinstance(right, Sequence) and isinstance(left, Expression) and "," in gold:
        yield read(tokens(gold, lists=True)), right
    for text, a, b in ((answer, right, left), (gold, left, right)):
        if isinstance(a, Sequence) and a.kind == "bare" and isinstance(b, Expression) and b.decimal:
            if m := _DECIMAL_COMMA.fullmatch(text.strip(" $.")):
                number = read(tokens(m.group(1) + "." + m.group(2)))
                yield (number, right) if a is left else (left, number)


_DECIMAL_COMMA = re.compile(r"(-?[0-9]{1,12})(?:,|\{,\})([0-9]{1,12})")
