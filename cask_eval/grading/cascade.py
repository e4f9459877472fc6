"""The stages, in order, for one reference and one extracted answer. Runs in a worker process.

Each stage answers True, False or "cannot tell"; the first that tells decides, and its name is recorded.
"""

from __future__ import annotations

from typing import NamedTuple

from cask_eval.grading import symbolic
from cask_eval.grading.answers import Answer, Expression, Sequence, Words, read
from cask_eval.grading.compare import same_answer
from cask_eval.grading.evaluate import rational
from cask_eval.grading.normalise import Token, tokens, write

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
        return Decision(same, "identical", "the same text" if same else "too long to look into, and another text")
    g, a = tokens(gold), tokens(answer)
    if integers:
        return _integers(g, a)
    if not a:
        return Decision(False, "none", "the answer is empty")
    if [t[:2] for t in g] == [t[:2] for t in a]:
        return Decision(True, "identical", "the same text")
    left, right = read(g), read(a)
    if (option := _option(left, a)) is not None:
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
    for side, items in (("reference", g), ("answer", a)):
        if why := symbolic.guard(items):
            return Decision(False, "guard", f"the {side} has {why}", failed=True)
    same, why = symbolic.verify(g, a)
    return Decision(same, "math-verify", why)


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


def _option(gold: Answer, answer: list[Token]) -> Decision | None:
    """(C) and what option C says, for the reference C."""
    if not isinstance(gold, Words) or len(gold.text) != 1 or gold.text not in "ABCDEFGHIJ":
        return None
    text = write(answer).replace("\\text{", " ").replace("}", " ").split()
    joined = " ".join(text).replace("( ", "(").replace(" )", ")")
    if joined.startswith("(") and joined[2:3] == ")" and len(joined) > 3:
        same = joined[1] == gold.text
    elif joined[1:2] in (")", ".", ":") and len(joined) > 2 or joined[1:3] in (" )", " .", " :") and len(joined) > 3:
        same = joined[0] == gold.text
    else:
        return None
    return Decision(same, "option", "the option's letter" if same else "another option's letter")


def _readings(gold: str, answer: str, left: Answer, right: Answer) -> list[tuple[Answer, Answer]]:
    out: list[tuple[Answer, Answer]] = []
    if isinstance(left, Sequence) and isinstance(right, Expression) and "," in answer:
        out.append((left, read(tokens(answer, lists=True))))
    if isinstance(right, Sequence) and isinstance(left, Expression) and "," in gold:
        out.append((read(tokens(gold, lists=True)), right))
    return out


