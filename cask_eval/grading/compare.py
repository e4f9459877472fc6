"""Whether two typed answers are the same: True, False, or None where that cannot be told.

`same_answer` is asked with the reference first. The two sides are treated alike except where a reference says less than
it could: a name before the equals sign and a unit may be missing on either side.
"""

from __future__ import annotations

from fractions import Fraction

from cask_eval.grading.answers import (
    INFINITY,
    NOTHING,
    REALS,
    Answer,
    Based,
    Equation,
    Expression,
    Inequality,
    Interval,
    Matrix,
    Ratio,
    Sequence,
    Union,
    Unread,
    Words,
)
from cask_eval.grading.evaluate import Undefined, approximates, rational, same
from cask_eval.grading.expression import Tree, variables

__all__ = ["kind", "same_answer"]

Verdict = tuple[bool | None, str]


def kind(answer: Answer) -> str:
    """The name of the path that decides on such an answer."""
    if isinstance(answer, Sequence):
        return {"bare": "list", "options": "list", "named": "list"}.get(answer.kind, answer.kind)
    return {
        Expression: "expression", Words: "words", Based: "base", Ratio: "ratio", Interval: "interval",
        Union: "interval", Matrix: "matrix", Equation: "equation", Inequality: "inequality", Unread: "unread",
    }[type(answer)]  # fmt: skip


def same_answer(gold: Answer, answer: Answer) -> tuple[bool | None, str, str]:
    """(verdict, engine, reason)."""
    gold, answer = _undressed(gold, answer)
    if isinstance(gold, Expression) and isinstance(answer, Expression):
        return _expressions(gold, answer)
    verdict = _same(gold, answer)
    engine = kind(answer if isinstance(answer, Interval | Union) else gold)
    if verdict is None:
        unread = next((a for a in (gold, answer) if isinstance(a, Unread)), None)
        return None, engine, f"not read: {unread.why}" if unread else "not decided"
    if isinstance(gold, type(answer)) and kind(gold) == kind(answer):
        return verdict, engine, "equal" if verdict else "different"
    return verdict, engine, f"{kind(answer)} for {kind(gold)}" + ("" if verdict else ": another kind of answer")


def _undressed(gold: Answer, answer: Answer) -> tuple[Answer, Answer]:
    """Without what only one side says: `x =` before a value, brackets around one value."""
    if isinstance(answer, Equation) and not isinstance(gold, Equation) and answer.value is not None:
        answer = _value_of(answer)
    elif isinstance(gold, Equation) and not isinstance(answer, Equation) and gold.value is not None:
        gold = gold.value
    if isinstance(gold, Sequence) and gold.kind == "set" and len(gold.items) == 1 and isinstance(answer, Expression):
        gold = gold.items[0]
    elif isinstance(answer, Sequence) and answer.kind == "set" and len(answer.items) == 1:
        if isinstance(gold, Expression):
            answer = answer.items[0]
    return gold, answer


def _value_of(equation: Equation) -> Answer:
    """What an equation answers, provided that one without a name is true."""
    if not equation.name and same(equation.left, equation.right) is not True:
        return Unread("an equation that is not true", wrong=True)
    return equation.value


def _expressions(gold: Expression, answer: Expression) -> tuple[bool | None, str, str]:
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False, "unit", f"{answer.unit} for {gold.unit}"
    try:
        a, b = rational(gold.tree), rational(answer.tree)
    except Undefined as error:
        return False, "number", str(error) or "undefined"
    if a is not None and b is not None:
        if a == b:
            return True, "number", "equal"
    else:
        equal = same(gold.tree, answer.tree)
        if equal is None:
            return None, "expression", "not decided"
        if equal:
            return True, "expression", "equal"
    for short, full in ((answer, gold), (gold, answer)):
        if short.decimal and not full.decimal and approximates(short.decimal, full.tree):
            return True, "decimal", "equal to the last digit written"
    return False, "number" if a is not None and b is not None else "expression", "different"


def _same(gold: Answer, answer: Answer) -> bool | None:
    gold, answer = _undressed(gold, answer)
    if isinstance(gold, Unread) or isinstance(answer, Unread):
        return False if isinstance(answer, Unread) and answer.wrong else None
    if isinstance(gold, Expression) and isinstance(answer, Expression):
        return _expressions(gold, answer)[0]
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _words(gold, answer)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        if len(gold.rows) != len(answer.rows) or len(gold.rows[0]) != len(answer.rows[0]):
            return False
        return _all(_same(a, b) for r, s in zip(gold.rows, answer.rows) for a, b in zip(r, s))
    if isinstance(gold, Matrix | Sequence) and isinstance(answer, Matrix | Sequence):
        return _sequences(_column(gold), _column(answer))
    if isinstance(gold, Interval | Union) or isinstance(answer, Interval | Union):
        return _intervals(gold, answer)
    if isinstance(gold, Based) and isinstance(answer, Based):
        return gold == answer
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return _ratios(gold, answer)
    if isinstance(gold, Equation) and isinstance(answer, Equation):
        return _equations(gold, answer)
    if isinstance(gold, Inequality) and isinstance(answer, Inequality):
        return _inequalities(gold, answer)
    return False


def _all(verdicts) -> bool | None:
    known = True
    for v in verdicts:
        if v is False:
            return False
        known = known and v
    return True if known else None


# --- words -------------------------------------------------------------------------------------------------------


def _words(gold: Answer, answer: Answer) -> bool | None:
    for one, other in ((gold, answer), (answer, gold)):
        if one == Sequence("set", ()) and isinstance(other, Words):
            return other.text.removesuffix("s") in NOTHING
        if isinstance(one, Interval) and isinstance(other, Words):
            return _infinite(one.low) and _infinite(one.high) and other.text.removesuffix("s") in REALS
    a, b = _text(gold), _text(answer)
    if a is None or b is None:
        return False
    if a == b:
        # One letter is a name in mathematics, and x is not X; options are told by upper case.
        return True
    if len(a) == len(b) == 1:
        return a.lower() == b.lower() and a in "ABCDEFGHIJ"
    if len(a) == 1 and a in "ABCDEFGHIJ":
        # (C) ellipse
        return False
    a, b = (text.replace(" ", "") for text in (a, b))
    return a.removesuffix("s") == b.removesuffix("s") and len(a) > 3 or a == b


def _text(answer: Answer) -> str | None:
    if isinstance(answer, Words):
        return answer.text if len(answer.text) == 1 else answer.text.casefold()
    if isinstance(answer, Expression) and answer.tree[0] in ("var", "const") and len(answer.tree[1]) == 1:
        return answer.tree[1]
    if isinstance(answer, Expression) and not answer.unit:
        return _letters(answer.tree)
    return None


def _letters(tree: Tree) -> str | None:
    """ab of a·b."""
    if tree[0] in ("var", "const") and len(tree[1]) == 1:
        return tree[1].casefold()
    if tree[0] == "mul":
        a, b = _letters(tree[1]), _letters(tree[2])
        return a + b if a and b else None
    return None


# --- sequences ---------------------------------------------------------------------------------------------------


def _column(answer: Matrix | Sequence) -> Matrix | Sequence:
    """A column or row vector as the tuple that it is."""
    if isinstance(answer, Matrix) and (len(answer.rows[0]) == 1 or len(answer.rows) == 1):
        return Sequence("vector", tuple(cell for row in answer.rows for cell in row))
    return answer


def _sequences(a: Matrix | Sequence, b: Matrix | Sequence) -> bool | None:
    if isinstance(a, Matrix) or isinstance(b, Matrix):
        return False
    if len(a.items) != len(b.items) and "set" not in (a.kind, b.kind) and "bare" not in (a.kind, b.kind):
        return False
    kinds = {a.kind, b.kind}
    if "named" in kinds:
        if kinds == {"named"}:
            if set(a.names) != set(b.names):
                return False
            values = dict(zip(b.names, b.items))
            return _all(_same(x, values[name]) for name, x in zip(a.names, a.items))
        return _named(a, b) if kinds & {"tuple", "bare", "vector", "set"} else False
    if kinds <= {"set", "bare"}:
        return _unordered(a.items, b.items)
    if kinds in ({"tuple"}, {"list"}, {"tuple", "bare"}, {"list", "bare"}, {"tuple", "vector"}, {"list", "vector"}):
        return _in_order(a, b)
    if kinds == {"tuple", "list"} and len(a.items) != 2:
        return _in_order(a, b)
    return False


def _named(a: Sequence, b: Sequence) -> bool | None:
    """x = 1, y = 2 against (1, 2): in the order written or that of the names; x_1 = 3, x_2 = 4 are two solutions."""
    named, other = (a, b) if a.kind == "named" else (b, a)
    if len({name.split("_")[0] for name in named.names}) == 1 and other.kind in ("bare", "set"):
        return _unordered(a.items, b.items)
    if other.kind == "set":
        return False
    order = sorted(range(len(named.names)), key=lambda k: named.names[k])
    written = _in_order(named, other)
    if written is True:
        return True
    sorted_ = _in_order(Sequence("tuple", tuple(named.items[k] for k in order)), other)
    return True if sorted_ else None if None in (written, sorted_) else False


def _in_order(a: Sequence, b: Sequence) -> bool | None:
    if len(a.items) != len(b.items):
        return False
    return _all(_same(x, y) for x, y in zip(a.items, b.items))


def _unordered(a: tuple[Answer, ...], b: tuple[Answer, ...]) -> bool | None:
    """Whether each item of one side has its own equal on the other; a repeated item counts once in a set of numbers."""
    if len(a) != len(b):
        a, b = _distinct(a), _distinct(b)
        if len(a) != len(b):
            return False
    left = list(b)
    unsure: list[Answer] = []
    for x in a:
        for k, y in enumerate(left):
            if _same(x, y) is True:
                del left[k]
                break
        else:
            unsure.append(x)
    if not unsure:
        return True
    if all(any(_same(x, y) is None for y in left) for x in unsure):
        return None
    return False


def _distinct(items: tuple[Answer, ...]) -> tuple[Answer, ...]:
    out: list[Answer] = []
    for item in items:
        if not any(_same(item, other) is True for other in out):
            out.append(item)
    return tuple(out)


# --- intervals ---------------------------------------------------------------------------------------------------


def _as_parts(answer: Answer) -> list[Answer] | None:
    """Intervals and finite sets whose union the answer is."""
    if isinstance(answer, Union):
        return list(answer.parts)
    if isinstance(answer, Interval):
        return [answer]
    if isinstance(answer, Sequence) and answer.kind in ("tuple", "list") and len(answer.items) == 2:
        return [Interval(*answer.items, answer.kind == "tuple", answer.kind == "tuple")]
    if isinstance(answer, Inequality) and answer.relation == "!=":
        a, b = answer.left, answer.right
        if a[0] == "var" and not variables(b):
            point = Expression(b)
            low, high = Expression(("neg", INFINITY)), Expression(INFINITY)
            return [Interval(low, point, True, True), Interval(point, high, True, True)]
    return None


def _intervals(gold: Answer, answer: Answer) -> bool | None:
    a, b = _as_parts(gold), _as_parts(answer)
    if a is None or b is None:
        return False
    if len(a) != len(b):
        return False
    left = list(b)
    for x in a:
        verdicts = [_same_part(x, y) for y in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        else:
            return None if None in verdicts else False
    return True


def _same_part(x: Answer, y: Answer) -> bool | None:
    if isinstance(x, Interval) and isinstance(y, Interval):
        ends = _all((_same(x.low, y.low), _same(x.high, y.high)))
        if ends is not True:
            return ends
        # At infinity there is no end to include.
        low = x.low_open == y.low_open or _infinite(x.low)
        high = x.high_open == y.high_open or _infinite(x.high)
        return low and high
    if isinstance(x, Sequence) and isinstance(y, Sequence):
        return _unordered(x.items, y.items)
    return False


def _infinite(answer: Answer) -> bool:
    return isinstance(answer, Expression) and answer.tree in (INFINITY, ("neg", INFINITY))


# --- ratios, equations, inequalities -----------------------------------------------------------------------------


def _ratios(gold: Answer, answer: Answer) -> bool | None:
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        if gold.suffix and answer.suffix and gold.suffix != answer.suffix:
            return False
        same_parts = len(gold.parts) == len(answer.parts) and all(
            Fraction(a) == Fraction(b) for a, b in zip(gold.parts, answer.parts)
        )
        return same_parts
    ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    clock = ratio.suffix or any(len(p) > 1 and p[0] == "0" for p in ratio.parts)
    if clock or len(ratio.parts) != 2 or not isinstance(other, Expression) or not Fraction(ratio.parts[1]):
        return False
    try:
        return other.tree[0] == "div" and rational(other.tree) == Fraction(ratio.parts[0]) / Fraction(ratio.parts[1])
    except Undefined:
        return False


def _difference(a: Tree, b: Tree) -> Tree:
    return ("add", a, ("neg", b))


def _proportional(f: Tree, g: Tree, positive: bool) -> bool | None:
    """Whether f is a constant times g (a positive one, if so asked)."""
    if variables(f) != variables(g) or not variables(f):
        return False if variables(f) != variables(g) else None
    from cask_eval.grading.evaluate import ratio_at_points

    return ratio_at_points(f, g, positive)


def _equations(gold: Equation, answer: Equation) -> bool | None:
    if gold.name and answer.name and gold.value is not None and answer.value is not None:
        if gold.name == answer.name:
            return _same(gold.value, answer.value)
    if gold.value is not None and not gold.name and answer.value is not None and not answer.name:
        return _same(gold.value, answer.value)
    if any(e.left[0] == "var" and e.right == ("num", 0, False) and e.value is not None for e in (gold, answer)):
        if gold.name and answer.name:
            return False
    return _proportional(_difference(gold.left, gold.right), _difference(answer.left, answer.right), False)


def _inequalities(gold: Inequality, answer: Inequality) -> bool | None:
    if gold.strict != answer.strict or gold.relation != answer.relation:
        return False
    f, g = _difference(gold.left, gold.right), _difference(answer.left, answer.right)
    return _proportional(f, g, gold.relation == "<")


