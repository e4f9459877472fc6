"""What kind of thing an answer is: a number with a unit, a tuple, a set, an interval, a matrix, an equation, words …

`read` sorts a list of tokens into one of the types below. What it cannot place becomes `Unread`, which equals nothing
and is left to the last stage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from cask_eval.grading import units
from cask_eval.grading.evaluate import Undefined, rational
from cask_eval.grading.expression import FUNCTIONS, Tree, Unreadable, parse, variables
from cask_eval.grading.normalise import Token

__all__ = ["Answer", "Based", "Equation", "Expression", "Inequality", "Interval", "Matrix", "Ratio", "Sequence"]
__all__ += ["INFINITY", "NOTHING", "REALS", "Union", "Unread", "Words", "read"]

#: Most items of a sequence, and most cells of a matrix.
ITEMS = 200


@dataclass(frozen=True)
class Expression:
    """`decimal` is the text of an answer that is one decimal number; `unit` is "" where there is none."""

    tree: Tree
    unit: str = ""
    decimal: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Based:
    """Digits in a base other than ten."""

    digits: str
    base: int


@dataclass(frozen=True)
class Ratio:
    """5:3, or the time of day 5:30; `suffix` is am or pm."""

    parts: tuple[str, ...]
    suffix: str = ""


@dataclass(frozen=True)
class Sequence:
    """`kind`: tuple ( ), list [ ], set { }, bare (no brackets), options (joined by or)."""

    kind: str
    items: tuple[Answer, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    low: Answer
    high: Answer
    low_open: bool
    high_open: bool


@dataclass(frozen=True)
class Union:
    parts: tuple[Answer, ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True)
class Equation:
    left: Tree
    right: Tree
    #: the right side as an answer, when the left is a name: y = 2x + 3 answers 2x + 3.
    value: Answer | None = None
    name: str = ""


@dataclass(frozen=True)
class Inequality:
    """left < right (strict) or left ≤ right; relation "!=" for ≠."""

    left: Tree
    right: Tree
    strict: bool
    relation: str = "<"


@dataclass(frozen=True)
class Unread:
    """`wrong` says that it equals nothing for certain."""

    why: str
    wrong: bool = False


Answer = (
    Expression | Words | Based | Ratio | Sequence | Interval | Union | Matrix | Equation | Inequality | Unread
)

INFINITY = ("const", "inf")
_OPEN = {("op", "("): ("op", ")"), ("op", "["): ("op", "]"), ("cmd", "{"): ("cmd", "}"), ("op", "{"): ("op", "}")}
_OPEN[("cmd", "langle")] = ("cmd", "rangle")
_CLOSE = {*_OPEN.values()}
_MATRICES = {"pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "array", "psmallmatrix", "bsmallmatrix"}
_LINES = {"cases", "aligned", "align", "gathered", "split"}
_RELATIONS = {("op", "<"): "<", ("op", ">"): ">", ("cmd", "leq"): "<=", ("cmd", "geq"): ">=", ("cmd", "neq"): "!="}
_RELATIONS[("op", "=")] = "="
_VAGUE = {"approximately", "approx", "about", "roughly", "exactly", "only", "therefore", "thus", "so", "hence"}
_MONEY = {"usd", "eur", "gbp", "euros", "pounds"}  # what stands before a number: USD 5, €5
_HOLLOW = {"the", "a", "an", "is", "are"}


def _split(items: list[Token], is_separator) -> list[list[Token]]:
    """Parts between separators that stand outside all brackets."""
    parts, part, depth = [], [], 0
    for t in items:
        key = t[:2]
        if key in _OPEN or t.kind == "env":
            depth += 1
        elif key in _CLOSE or t.kind == "end":
            depth -= 1
        if depth <= 0 and is_separator(t):
            parts.append(part)
            part = []
        else:
            part.append(t)
    return [*parts, part]


def _closer(items: list[Token]) -> int:
    """Where the bracket that opens `items` closes, by depth of any kind of bracket; −1 when it does not."""
    depth = 0
    for k, t in enumerate(items):
        if t[:2] in _OPEN or t.kind == "env":
            depth += 1
        elif t[:2] in _CLOSE or t.kind == "end":
            depth -= 1
            if depth == 0:
                return k
    return -1


def _is(t: Token, *values: str) -> bool:
    return t.kind in ("op", "cmd") and t.value in values


def _connector(t: Token) -> bool:
    return t.kind in ("word", "text") and t.value.lower() in ("and", "or")


def _trim(items: list[Token]) -> list[Token]:
    """Without punctuation, emphasis and braces around the whole."""
    while items:
        if items[-1].kind == "op" and items[-1].value in ".,;:*`\"?":
            items = items[:-1]
        elif items[0].kind == "op" and items[0].value in "*`\"':,;":
            items = items[1:]
        elif items[-1][:2] == ("op", "\\\\") or items[-1][:2] == ("cmd", "newline"):
            items = items[:-1]
        elif items[0][:2] == ("op", "{") and _closer(items) == len(items) - 1:
            items = items[1:-1]
        elif items[0].kind in ("word", "text") and items[0].value.lower() in _VAGUE and len(items) > 1:
            items = items[1:]
        elif items[0][:2] in (("cmd", "approx"), ("cmd", "therefore"), ("cmd", "implies"), ("cmd", "Rightarrow")):
            items = items[1:]
        elif items[0][:2] == ("op", "=") and len(items) > 1:
            items = items[1:]
        elif len(items) > 1 and items[0].kind == "text" and re.search(r"(\bis|\bare|:|=)$", items[0].value):
            items = items[1:]
        else:
            break
    return items


def read(items: list[Token], depth: int = 0) -> Answer:
    """The answer that the tokens make."""
    items = _trim(items)
    if not items:
        return Words("")
    if depth > 12:
        return Unread("nested too deeply")
    if (n := _spelled(items)) is not None:
        return Expression(("num", Fraction(n), False))
    if (words := _words(items)) is not None:
        return words
    for reader in (_matrix, _membership, _joined, _relation, _bracketed, _special):
        found = reader(items, depth)
        if found is not None:
            return found
    return _quantity(items)


# --- words -------------------------------------------------------------------------------------------------------


def _spelled(items: list[Token]) -> int | None:
    """A number in words: seven, twenty-one, two hundred."""
    words = []
    for k, t in enumerate(items):
        if t.kind in ("word", "text"):
            words += re.split(r"[\s-]+", t.value.lower())
        elif not (t[:2] == ("op", "-") and 0 < k < len(items) - 1):
            return None
    if not 1 <= len(words) <= 3:
        return None
    factor = units.MULTIPLIERS.get(words[-1], 1) if len(words) > 1 else 1
    values = [units.NUMBERS.get(word) for word in (words[:-1] if factor > 1 else words)]
    if None in values or len(values) > 2:
        return None
    if len(values) == 2 and not (values[0] in range(20, 100, 10) and 0 < values[1] < 10):
        return None
    return sum(values) * factor


def _words(items: list[Token]) -> Words | None:
    """Text answers: only words and text, at least one of two letters, or an option letter in brackets."""
    values = []
    for t in items:
        if t.kind in ("word", "text"):
            values.append(t.value)
        elif t.kind == "op" and t.value in "().,'\"-:/&":
            values.append(t.value)
        else:
            return None
    joined = " ".join(values)
    letters = re.findall(r"[^\W\d_]+", joined)
    if len(letters) == 1 and len(letters[0]) == 1 and not re.search(r"\d", joined):
        inner = re.fullmatch(r"\(?\s*([^\W\d_])\s*[).:]?\s*\)?", joined)
        marked = inner and (joined != letters[0] or items[0].kind == "text")
        return Words(letters[0]) if marked else None
    if any(t.kind == "word" and t.value.lower() in ("infinity", "inf", "pi", "oo") for t in items):
        return None
    if any(t.kind == "word" and t.value.lower() in ("and", "or") for t in items):
        return None
    only_words = [t for t in items if t.kind in ("word", "text")]
    if not only_words or all(len(t.value) <= 2 and t.kind == "word" for t in only_words):
        return None
    if any(t.kind == "text" and len(t.value) > 1 for t in only_words):
        return Words(" ".join(w for w in _cleaned(joined)))
    if any(len(t.value) >= 3 for t in only_words) and not any(
        t.value in ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp", "sqrt") for t in only_words
    ):
        return Words(" ".join(_cleaned(joined)))
    return None


def _cleaned(text: str) -> list[str]:
    words = re.findall(r"[\w%$]+(?:['.][\w]+)*", text.casefold())
    while len(words) > 1 and words[0] in _HOLLOW:
        words = words[1:]
    return words


#: What says that every real number does.
REALS = {"all real", "all real number", "all real value", "real number", "set of real number", "set of all real number"}
#: What says that nothing solves the problem, without the plural.
NOTHING = {"no solution", "no real solution", "none", "empty set", "null set", "no value", "there are no solution"}


# --- structures --------------------------------------------------------------------------------------------------


def _matrix(items: list[Token], depth: int) -> Answer | None:
    start = next((k for k, t in enumerate(items) if t.kind == "env"), None)
    if start is None:
        return None
    stop = max((k for k, t in enumerate(items) if t.kind == "end"), default=-1)
    before, inner, after = items[:start], items[start + 1 : stop], items[stop + 1 :]
    name = items[start].value
    if name in _LINES and start == 0 and stop == len(items) - 1:
        lines = [Token("op", ",") if t[:2] == ("op", "\\\\") else t for t in inner if t[:2] != ("op", "&")]
        return read(lines, depth + 1)
    if stop < 0 or name not in _MATRICES or any(t.kind in ("env", "end") for t in inner):
        return Unread("an environment")
    if len(before) >= 2 and before[-2][:2] == ("op", "=") and before[-1][:2] in _OPEN:
        pass
    bracket = before[-1:] and before[-1][:2] in _OPEN and before[-1][:2] != ("cmd", "{")
    if bracket and after[:1] and after[0][:2] in _CLOSE:
        before, after = before[:-1], after[1:]
    if before and before[-1][:2] == ("op", "=") and len(before) <= 4:
        before = []
    after = [t for t in after if not _is(t, ".", ",")]
    if after:
        return Unread("something behind a matrix")
    scale = None
    if before:
        try:
            scale = parse(before[:-1] if _is(before[-1], "*") else before)
        except Unreadable:
            if [t[:2] for t in before] != [("op", "-")]:
                return Unread("something before a matrix")
            scale = ("num", -1, False)
    rows = []
    for line in _split(inner, lambda t: t[:2] == ("op", "\\\\") or t[:2] == ("cmd", "cr")):
        if line:
            rows.append(tuple(read(cell, depth + 1) for cell in _split(line, lambda t: t[:2] == ("op", "&"))))
    if not rows or sum(map(len, rows)) > ITEMS or len({len(r) for r in rows}) > 1:
        return Unread("a ragged or very large matrix")
    if scale is not None:
        if not all(isinstance(cell, Expression) for row in rows for cell in row):
            return Unread("a multiple of a matrix")
        rows = [tuple(Expression(("mul", scale, cell.tree)) for cell in row) for row in rows]
    return Matrix(tuple(rows))


def _membership(items: list[Token], depth: int) -> Answer | None:
    """x \\in S answers S."""
    for k, t in enumerate(items[:6]):
        if t[:2] == ("cmd", "in"):
            name = items[:k]
            if name and all(u.kind in ("word", "num", "op") or u.value in ("theta", "alpha") for u in name):
                return read(items[k + 1 :], depth + 1)
    return None


def _single_variable(answer: Answer) -> bool:
    return isinstance(answer, Interval | Union)


def _joined(items: list[Token], depth: int) -> Answer | None:
    """Unions, and lists without brackets."""
    parts = _split(items, lambda t: t[:2] == ("cmd", "cup"))
    if len(parts) > 1:
        if len(parts) > ITEMS:
            return Unread("a very long union")
        return _union([read(_braced(p), depth + 1) for p in parts])
    if len(parts := _split(items, lambda t: t[:2] == ("cmd", "approx"))) == 2 and all(parts):
        return read(parts[1 if _name(parts[0]) is not None else 0], depth + 1)
    if len(parts := [p for p in _split(items, lambda t: _is(t, ";")) if p]) > 1 and any(_is(t, ",") for t in items):
        return Sequence("bare", tuple(read(p, depth + 1) for p in parts[: ITEMS + 1]))
    words = {t.value.lower() for t in items if _connector(t)}
    parts = _split(items, lambda t: _is(t, ",", ";") or _connector(t))
    parts = [p for p in parts if p]
    if len(parts) < 2:
        return None
    if len(parts) > ITEMS:
        return Unread("a very long list")
    if all(_words(p) is not None for p in parts) and not words and any(t.kind != "text" for t in items):
        # Names with commas: Alice, Bob. A date or a sentence ends here as well.
        return Sequence("bare", tuple(read(p, depth + 1) for p in parts))
    return _sequence("options" if "or" in words else "bare", [read(p, depth + 1) for p in parts])


def _braced(items: list[Token]) -> list[Token]:
    """Braces around a part of a union are those of a set, with a backslash or without."""
    if items and items[0][:2] == ("op", "{") and _closer(items) == len(items) - 1:
        return [Token("cmd", "{"), *items[1:-1], Token("cmd", "}")]
    return items


def _sequence(kind: str, items: list[Answer]) -> Answer:
    if any(isinstance(item, Interval | Union) for item in items):
        if kind == "options" and all(isinstance(item, Interval | Union | Expression) for item in items):
            return _union(items)
        if kind == "bare" and len(items) == 2 and all(isinstance(item, Interval) for item in items):
            low, high = sorted(items, key=lambda v: v.low.tree == ("neg", INFINITY))
            # x > 2 and x < 5
            if low.high.tree == INFINITY and high.low.tree == ("neg", INFINITY):
                return Interval(low.low, high.high, low.low_open, high.high_open)
        if kind == "bare" and all(isinstance(item, Interval) for item in items):
            return Sequence("bare", tuple(items))
    flat: list[Answer] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Sequence) and item.kind == "bare" else [item])
    named = [item for item in flat if isinstance(item, Equation) and item.name]
    if named and len(named) == len(flat):
        names = {item.name for item in flat}
        values = tuple(item.value for item in flat)
        if len(names) == 1:
            return Sequence("bare", values)
        if len(names) == len(flat):
            return Sequence("named", values, tuple(item.name for item in flat))
        order = tuple(item.name for item in flat[: len(names)])
        if len(set(order)) == len(order) and tuple(item.name for item in flat) == order * (len(flat) // len(order)):
            # x = 1, y = 2 and x = 3, y = 4
            step = len(order)
            return Sequence(
                "bare", tuple(Sequence("named", values[k : k + step], order) for k in range(0, len(values), step))
            )
    if named and isinstance(flat[0], Equation) and not any(isinstance(item, Equation) for item in flat[1:]):
        # x = 1, 2 or 3
        return Sequence("bare", (flat[0].value, *flat[1:]))
    return Sequence("bare" if kind in ("bare", "options") else kind, tuple(flat))


def _union(parts: list[Answer]) -> Answer:
    flat: list[Answer] = []
    for part in parts:
        if isinstance(part, Union):
            flat.extend(part.parts)
        elif isinstance(part, Sequence) and part.kind in ("tuple", "list") and len(part.items) == 2:
            flat.append(Interval(*part.items, part.kind == "tuple", part.kind == "tuple"))
        elif isinstance(part, Interval) or isinstance(part, Sequence) and part.kind == "set":
            flat.append(part)
        elif isinstance(part, Expression):
            flat.append(Sequence("set", (part,)))
        else:
            return Unread("a union of something else")
    points = [part for part in flat if isinstance(part, Sequence)]
    if len(points) == len(flat):
        return Sequence("set", tuple(item for part in points for item in part.items))
    return Union(tuple(flat))


def _relation(items: list[Token], depth: int) -> Answer | None:
    marks = []
    level = 0
    for k, t in enumerate(items):
        if t[:2] in _OPEN or t.kind == "env":
            level += 1
        elif t[:2] in _CLOSE or t.kind == "end":
            level -= 1
        elif level == 0 and t[:2] in _RELATIONS:
            marks.append((k, _RELATIONS[t[:2]]))
    if not marks or len(marks) > 4:
        return Unread("a long chain of relations") if marks else None
    relations = [r for _, r in marks]
    edges = [-1, *(k for k, _ in marks), len(items)]
    sides = [items[a + 1 : b] for a, b in zip(edges, edges[1:])]
    # <= and >= in plain text, and ==
    merged_sides, merged = [sides[0]], []
    for r, side in zip(relations, sides[1:]):
        if r == "=" and merged and merged[-1] in ("<", ">", "=", "!") and not merged_sides[-1]:
            merged[-1] = {"<": "<=", ">": ">=", "=": "="}[merged[-1]]
            merged_sides[-1] = side
        else:
            merged.append(r)
            merged_sides.append(side)
    sides, relations = merged_sides, merged
    if relations == ["="] and sides[0] and sides[0][-1][:2] == ("op", "!"):
        sides[0], relations = sides[0][:-1], ["!="]
    if not all(sides):
        return Unread("a relation with an empty side")
    if set(relations) == {"="}:
        return _equation(sides, depth)
    if "=" in relations or (len(relations) > 1 and "!=" in relations):
        return Unread("a mixed chain of relations")
    return _inequality(sides, relations)


def _name(side: list[Token]) -> str | None:
    """The name that a side is (x, x_1, f(x), \\theta, \\text{Area}, |AB|, \\angle ABC), None when it is none."""
    if len(side) > 16:
        return None
    text = " ".join(t.value for t in side)
    kinds = {t.kind for t in side}
    if [t.value for t in side[1:6]] == ["^", "{", "-", "1", "}"] and side[0].kind == "word":
        side = [side[0], *side[6:]]  # f^{-1}(x)
    if kinds <= {"word", "text"}:
        return text if text not in ("i", "e", "pi") else None
    if side[0].kind in ("word", "cmd") and len(side) > 1 and side[1][:2] in (("op", "_"), ("op", "("), ("op", "'")):
        inside = [t for t in side[1:] if t.kind not in ("op",)]
        if any(t.kind == "op" and t.value in "+-*/=^" for t in side[1:]) or side[0].value in ("frac", "sqrt"):
            return None
        single = len(side[0].value) == 1 or side[0].kind == "cmd"
        return text if inside and single and side[0].value not in ("pi", "e") and side[-1].value != "x(" else None
    if re.search("[A-Z]", text) and all(
        t.kind == "word" and t.value.isupper() or _is(t, "frac", "{", "}", "/", ":") or _under(side, k)
        for k, t in enumerate(side)
    ):
        return text
    if side[0].kind == "cmd" and side[0].value in ("angle", "triangle", "overline", "vec", "measuredangle"):
        return text
    if len(side) == 1 and side[0].kind == "cmd" and side[0].value not in ("pi", "infty"):
        return side[0].value
    if len(side) == 3 and side[0][:2] == side[2][:2] == ("op", "|") and side[1].kind == "word":
        return text if len(side[1].value) > 1 else None
    return None


def _under(side: list[Token], k: int) -> bool:
    """Whether the token belongs to a subscript: _ or the number behind it."""
    return _is(side[k], "_") or side[k].kind == "num" and any(_is(t, "_") for t in side[max(0, k - 2) : k])


def _two_signs(sides: list[list[Token]]) -> bool:
    return any(t[:2] in (("cmd", "pm"), ("cmd", "mp")) for side in sides for t in side)


def _equation(sides: list[list[Token]], depth: int) -> Answer:
    first, last = sides[0], sides[-1]
    name = _name(first)
    if name is None and len(sides) == 2 and (name := _name(last)) is not None and _name(first) is None:
        # 5 = x
        try:
            if not variables(parse(first)):
                first, last = last, first
            else:
                name = None
        except Unreadable:
            name = None
    value = read(last, depth + 1) if name is not None else None
    try:
        if _two_signs(sides):
            raise Unreadable("two equations in one")
        left, right = parse(first), parse(last)
    except Unreadable as error:
        if value is not None and not isinstance(value, Unread):
            return Equation(("var", name or ""), ("num", 0, False), value, name or "")
        return Unread(str(error))
    if value is None and len(sides) >= 2 and not variables(left) and not variables(right):
        # 2 + 3 = 5 answers 5 (when it is true: `compare` checks).
        value = read(last, depth + 1)
    if len(sides) > 2 and name is None and value is None:
        return Unread("a chain of equations")
    return Equation(left, right, value, name or "")


def _inequality(sides: list[list[Token]], relations: list[str]) -> Answer:
    if _two_signs(sides):
        return Unread("two relations in one")
    try:
        trees = [parse(_trim(side)) for side in sides]
    except Unreadable as error:
        return Unread(str(error))
    if len(trees) == 2:
        a, b, r = trees[0], trees[1], relations[0]
        if r == "!=":
            return Inequality(a, b, True, "!=")
        if r in (">", ">="):
            a, b = b, a
        strict = r in ("<", ">")
        # x < 5 as an interval
        if a[0] == "var" and not variables(b):
            return Interval(Expression(("neg", INFINITY)), Expression(b), True, strict)
        if b[0] == "var" and not variables(a):
            return Interval(Expression(a), Expression(INFINITY), strict, True)
        return _linear(a, b, strict) or Inequality(a, b, strict)
    if len(trees) == 3:
        if all(r in (">", ">=") for r in relations):
            trees, relations = trees[::-1], relations[::-1]
        elif not all(r in ("<", "<=") for r in relations):
            return Unread("a mixed chain of relations")
        if trees[1][0] == "var" and not variables(trees[0]) and not variables(trees[2]):
            opens = [r in ("<", ">") for r in relations]
            return Interval(Expression(trees[0]), Expression(trees[2]), *opens)
    return Unread("a chain of relations")


def _linear(a: Tree, b: Tree, strict: bool) -> Interval | None:
    """The interval in which a < b, where both are linear in one variable with rational coefficients."""
    names = variables(a) | variables(b)
    if len(names) != 1:
        return None
    values = []
    for x in (0, 1, 2):
        try:
            sides = [rational(_put(tree, ("num", Fraction(x), False))) for tree in (a, b)]
        except Undefined:
            return None
        if None in sides:
            return None
        values.append(sides[0] - sides[1])
    slope = values[1] - values[0]
    if not slope or values[2] - values[1] != slope:
        return None
    end = Expression(("num", -values[0] / slope, False))
    if slope > 0:
        return Interval(Expression(("neg", INFINITY)), end, True, strict)
    return Interval(end, Expression(INFINITY), strict, True)


def _put(tree: Tree, value: Tree) -> Tree:
    if tree[0] == "var":
        return value
    return tuple(_put(part, value) if isinstance(part, tuple) else part for part in tree)


def _bracketed(items: list[Token], depth: int) -> Answer | None:
    first, last = items[0], items[-1]
    if first[:2] == ("cmd", "emptyset") and len(items) == 1:
        return Sequence("set", ())
    if first[:2] == ("cmd", "mathbb_R") and len(items) == 1:
        return Interval(Expression(("neg", INFINITY)), Expression(INFINITY), True, True)
    if first[:2] not in _OPEN or first[:2] == ("op", "{") or _closer(items) != len(items) - 1:
        return None
    parts = _split(items[1:-1], lambda t: _is(t, ",", ";"))
    if len(parts) > ITEMS:
        return Unread("a very long list")
    if len(parts) == 1 and not parts[0]:
        return Sequence("set" if first.value == "{" else "tuple", ())
    if any(not p for p in parts):
        return Unread("an empty item")
    if first.value == "{":
        if any(t[:2] in (("op", "|"), ("op", ":"), ("cmd", "in")) for t in items):
            return _builder(items[1:-1], depth)
        inner = read(items[1:-1], depth + 1)
        if isinstance(inner, Sequence) and inner.kind == "bare":
            return Sequence("set", inner.items)
        return Sequence("set", (inner,) if len(parts) == 1 else tuple(read(p, depth + 1) for p in parts))
    if len(parts) == 1:
        if first.value == "langle":
            return Unread("a single component")
        inner = read(items[1:-1], depth + 1)
        return None if isinstance(inner, Expression | Unread) else inner
    values = [read(p, depth + 1) for p in parts]
    if first.value == "langle":
        return Sequence("tuple", tuple(values))
    if first.value == "(" and last.value == ")":
        return Sequence("tuple", tuple(values))
    if first.value == "[" and last.value == "]":
        return Sequence("list", tuple(values))
    if len(values) == 2:
        return Interval(*values, first.value == "(", last.value == ")")
    return Unread("brackets that do not match")


def _builder(items: list[Token], depth: int) -> Answer:
    """{x | −1 < x < 2} and {x : x > 3}."""
    for k, t in enumerate(items[:4]):
        if t[:2] in (("op", "|"), ("op", ":")):
            inner = read(items[k + 1 :], depth + 1)
            if isinstance(inner, Interval | Union) and all(u.kind in ("word", "cmd") for u in items[:k]):
                return inner
    return Unread("a set by its property")


def _special(items: list[Token], depth: int) -> Answer | None:
    """Numbers in another base, times and ratios."""
    under = next((k for k, t in enumerate(items) if t[:2] == ("op", "_")), None)
    if under and len(items) <= 12:
        head, tail = items[:under], items[under + 1 :]
        if head[0][:2] == ("op", "(") and head[-1][:2] == ("op", ")"):
            head = head[1:-1]
        if tail and tail[0][:2] == ("op", "{") and tail[-1][:2] == ("op", "}"):
            tail = tail[1:-1]
        digits = "".join(t.value for t in head)
        base = "".join(t.value for t in tail if t.value not in ("(", ")")).lower()
        base = str(units.NUMBERS.get(base, base))
        if head[0].kind == "num" and re.fullmatch(r"[0-9A-Za-z]{1,400}", digits) and re.fullmatch(r"[0-9]{1,2}", base):
            if int(base) == 10:
                return _quantity(head)
            return Based(digits.lstrip("0").upper() or "0", int(base))
    if any(t[:2] == ("op", ":") for t in items):
        parts = _split(items, lambda t: t[:2] == ("op", ":"))
        suffix = ""
        tail = [t for t in parts[-1] if t.kind in ("word", "text") or t[:2] == ("op", ".")]
        word = "".join(t.value for t in tail).replace(".", "").replace(" ", "").lower()
        if word in ("am", "pm"):
            suffix = word
            parts[-1] = [t for t in parts[-1] if t not in tail]
        if all(len(p) == 1 and p[0].kind == "num" for p in parts) and 2 <= len(parts) <= 6:
            return Ratio(tuple(p[0].value for p in parts), suffix)
        return Unread("a colon")
    return None


def _quantity(items: list[Token]) -> Answer:
    """A number or expression, with its unit where it has one."""
    core, unit, marked = _unit(items)
    factor = 1
    if core and len(core) > 1 and core[-1].kind in ("word", "text") and core[-1].value.lower() in units.MULTIPLIERS:
        factor = units.MULTIPLIERS[core[-1].value.lower()]
        core = core[:-1]
    core = _trim(core)
    try:
        plus, minus = parse(core, 1), None
        if any(t[:2] in (("cmd", "pm"), ("cmd", "mp")) for t in core):
            minus = parse(core, -1)
    except Unreadable as error:
        if core != items:
            try:
                return Expression(parse(_trim(items)))
            except Unreadable:
                pass
        return Unread(str(error))
    if factor != 1:
        plus = ("mul", plus, ("num", factor, False))
        minus = minus and ("mul", minus, ("num", factor, False))
    if minus is not None:
        return Sequence("bare", (Expression(plus, unit), Expression(minus, unit)))
    decimal = ""
    signed = core[1:] if core[0][:2] == ("op", "-") else core
    written = signed[0].value if len(signed) == 1 and signed[0].kind == "num" else _scientific(signed)
    if "." in written:
        decimal = ("-" if signed is not core else "") + written
    return Expression(plus, unit, decimal, marked)


_POWER_OF_TEN = re.compile(r"\*10\^\{?(-?[0-9]{1,2})\}?")


def _scientific(items: list[Token]) -> str:
    """The decimal that 2.5 × 10^{-3} writes; "" where it is something else."""
    if not items or items[0].kind != "num" or "." not in items[0].value or len(items) > 8:
        return ""
    power = _POWER_OF_TEN.fullmatch("".join(t.value for t in items[1:]))
    return format(Decimal(items[0].value).scaleb(int(power.group(1))), "f") if power else ""


def _called(items: list[Token]) -> bool:
    """Whether a function is called: the degrees of \\sin 30^\\circ are no unit of the sine."""
    return any(t.kind in ("cmd", "word") and t.value in FUNCTIONS for t in items)


def _unit(items: list[Token]) -> tuple[list[Token], str, bool]:
    """(what is counted, its unit, whether a unit was found)."""
    if items[0][:2] == ("cmd", "$") or items[:2] and [t[:2] for t in items[:2]] == [("op", "-"), ("cmd", "$")]:
        rest = [t for t in items if t[:2] != ("cmd", "$")]
        core, unit, _ = _unit(rest) if rest else (rest, "", False)
        return core, unit if unit not in ("", "$") else "$", True
    if items[0].kind == "word" and items[0].value.lower() in _MONEY and len(items) > 1 and items[1].kind == "num":
        return items[1:], units.canonical_unit([items[0].value]), True
    if items[-1][:2] == ("cmd", "$") and len(items) > 1:
        return items[:-1], "$", True
    if items[-1][:2] == ("op", "%") and len(items) > 1:
        return items[:-1], "%", True
    if items[-1][:2] == ("cmd", "circ") and len(items) > 2 and not _called(items):
        return (items[:-2] if items[-2][:2] == ("op", "^") else items[:-1]), "deg", True
    if [t.value for t in items[-4:]] == ["^", "{", "circ", "}"] and len(items) > 4 and not _called(items):
        return items[:-4], "deg", True
    if items[-1].kind in ("word", "text") and items[-1].value in ("C", "F") and len(items) > 3:
        core, unit, found = _unit(items[:-1])
        if unit == "deg":
            return core, items[-1].value, True
    power, end = 1, len(items)
    shape = [t.value for t in items[-4:]]
    if len(items) > 2 and items[-1].kind == "num" and items[-2][:2] == ("op", "^") and items[-1].value in ("2", "3"):
        power, end = int(items[-1].value), end - 2
    elif len(items) > 4 and shape[:2] == ["^", "{"] and shape[3] == "}" and shape[2] in ("2", "3"):
        power, end = int(shape[2]), end - 4
    start = end
    while start > 1 and (
        items[start - 1].kind in ("word", "text")
        or (items[start - 1][:2] == ("op", "/") and end > start and items[start - 2].kind in ("word", "text"))
        or items[start - 1][:2] == ("op", ".") and items[start - 2].kind in ("word", "text")
    ):
        start -= 1
    run = items[start:end]
    # From the longest run of words to the shortest: 5x cm keeps its x.
    for k in range(start, end):
        run = items[k:end]
        if run[0].kind not in ("word", "text"):
            continue
        if run[0].value.lower() in units.MULTIPLIERS:
            continue
        words = [w for t in run for w in re.sub(r"[.()]", " ", "per" if t.value == "/" else t.value).split()]
        text_only = all(t.kind == "text" for t in run)
        alone = len(words) == 1 and len(words[0]) == 1
        if alone and run[0].kind == "word":
            plain = k == 1 and items[0].kind == "num" and run[0].gap and words[0] in "mgsLhtl" and power == 1
            if not plain:
                continue
            return items[:k], units.canonical_unit(words, power), True
        if units.is_word_unit(words, bare=not text_only):
            return items[:k], units.canonical_unit(words, power), True
    return items, "", False
