"""Pairs derived from reference answers by rules that know nothing of the grader: the label follows from the rule.

`pairs` gives (rule, reference, answer, label). Rules that keep the meaning rewrite the text of the answer; rules that
change it change a digit, a sign, an order, a bracket, a magnitude or take another item's answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from fractions import Fraction

INTEGER = re.compile(r"-?\d+")
FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}")
DECIMAL = re.compile(r"-?\d*\.\d+")
DEGREES = re.compile(r"(-?\d+)\^\\circ")
WORD = re.compile(r"\\text\{([A-Za-z]+)\}")
OPTION = re.compile(r"\\text\{\(([A-E])\)\}")
BASED = re.compile(r"(\d+)_\{?(\d)\}?")
ROOT = re.compile(r"(\d*) ?\\sqrt\{(\d+)\}")
MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}")
INTERVAL = re.compile(r"([(\[])([^()\[\],]+),([^()\[\],]+)([)\]])")
POLYNOMIAL = re.compile(r"[a-z0-9^+\- ]+")

UNICODE = {r"\pi": "π", r"\sqrt": "√", r"\infty": "∞", r"\circ": "°", "-": "−", r"\cup": "∪"}


def value(text: str) -> Fraction | None:
    """The number that a plain integer, decimal or fraction is."""
    if INTEGER.fullmatch(text):
        return Fraction(int(text))
    if DECIMAL.fullmatch(text):
        return Fraction(text.replace("-.", "-0."))
    if m := FRACTION.fullmatch(text):
        return Fraction(int(m[1] + m[2]), int(m[3])) if int(m[3]) else None
    return None


def parts(text: str) -> list[str] | None:
    """The items of (a, b, …) or of a, b, … ."""
    inner = re.sub(r"^\\left\(|\\right\)$|^\(|\)$", "", text.strip())
    items, depth, item = [], 0, ""
    for c in inner:
        depth += c in "({["
        depth -= c in ")}]"
        if c == "," and not depth:
            items.append(item.strip())
            item = ""
        else:
            item += c
    items.append(item.strip())
    return items if len(items) > 1 and all(items) and depth == 0 else None


def is_tuple(text: str) -> bool:
    return bool(re.fullmatch(r"(\\left)?\(.*\)", text)) and parts(text) is not None and "\\cup" not in text


def is_bare_list(text: str) -> bool:
    return bool(parts(text)) and not re.search(r"[()\[\]{}$!]", text) and not re.fullmatch(r"\d{1,3}(,\d{3})+", text)


def harmless(a: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Rewrites that say the same."""
    yield "dollars", f"${a}$"
    yield "display", f"\\[ {a} \\]"
    yield "inline", f"\\({a}\\)"
    yield "spaces around", f"  {a} "
    yield "full stop", f"{a}."
    yield "displaystyle", f"\\displaystyle {a}"
    yield "bold", f"**{a}**"
    yield "box in box", f"\\boxed{{{a}}}"
    if "frac" in a:
        yield "dfrac", a.replace("\\dfrac", "\\frac").replace("\\frac", "\\dfrac")
        yield "tfrac", a.replace("\\dfrac", "\\frac").replace("\\frac", "\\tfrac")
    if re.search(r"[+=,]", a) and "\\begin" not in a and "\\!" not in a and not re.search(r"\d,\d", a):
        yield "spaces out", re.sub(r"\s*([+=])\s*", r"\1", a)
        yield "spaces in", re.sub(r"\s*([+=,])\s*", r" \1 ", a)
    if "(" in a and ")" in a and "\\left" not in a and "text" not in a:
        yield "left right", a.replace("(", "\\left(").replace(")", "\\right)")
        yield "big", a.replace("(", "\\big(").replace(")", "\\big)")
    if "\\left" in a:
        yield "no left right", a.replace("\\left", "").replace("\\right", "")
    for latex, sign in UNICODE.items():
        if latex in a and not ("text" in a and latex == "-") and "begin" not in a:
            new = re.sub(re.escape(latex) + r"(?![A-Za-z])", sign, a).replace("^°", "°")
            yield f"unicode {sign}", new
    v = value(a)
    if INTEGER.fullmatch(a):
        yield "point zero", f"{a}.0"
        yield "point zeros", f"{a}.00"
        yield "equation", f"x = {a}"
        yield "units", f"{a} \\text{{ units}}"
        yield "words", f"{a} \\text{{ apples}}"
        yield "braces", f"{{{a}}}"
        yield "over one", f"\\frac{{{a}}}{{1}}"
        yield "mathrm", f"{a}\\,\\mathrm{{cm}}"
        if len(a.lstrip("-")) > 3:
            grouped = f"{int(a):,}"
            yield "comma", grouped
            yield "braced comma", grouped.replace(",", "{,}")
            yield "thin comma", grouped.replace(",", ",\\!")
            yield "thin space", grouped.replace(",", "\\,")
    if v is not None and v.denominator > 1:
        yield "slash", f"{v.numerator}/{v.denominator}"
        yield "unreduced", f"\\frac{{{v.numerator * 3}}}{{{v.denominator * 3}}}"
        yield "minus above", f"\\frac{{{v.numerator}}}{{{v.denominator}}}"
        if v < 0:
            yield "minus below", f"\\frac{{{-v.numerator}}}{{-{v.denominator}}}"
        d = v.denominator
        while d % 2 == 0:
            d //= 2
        while d % 5 == 0:
            d //= 5
        if d == 1 and v.denominator < 10**6:
            digits = 0
            while (v * 10**digits).denominator != 1:
                digits += 1
            whole = abs(int(v * 10**digits))
            text = ("-" if v < 0 else "") + str(whole).rjust(digits + 1, "0")
            yield "decimal", f"{text[:-digits]}.{text[-digits:]}"
            yield "decimal, zeros", f"{text[:-digits]}.{text[-digits:]}00"
        if v > 1:
            yield "mixed", f"{v.numerator // v.denominator}\\frac{{{v.numerator % v.denominator}}}{{{v.denominator}}}"
    if m := DEGREES.fullmatch(a):
        yield from (("degrees", m[1]), ("degrees", f"{m[1]}°"), ("degrees", f"{m[1]}^{{\\circ}}"))
        yield "degrees", f"{m[1]} \\text{{ degrees}}"
        yield "degrees", f"{m[1]} degrees"
    if m := WORD.fullmatch(a):
        yield from (("word", m[1]), ("word", m[1].upper()), ("word", f"\\textbf{{{m[1]}}}"),
        ("word", f"\\mbox{{{m[1]}}}"))
    if m := OPTION.fullmatch(a):
        yield from (("option", m[1]), ("option", f"({m[1]})"), ("option", f"\\textbf{{({m[1]})}}"))
    if m := BASED.fullmatch(a):
        yield from (("base", f"{m[1]}_{m[2]}"), ("base", f"{m[1]}_{{{m[2]}}}"),
        ("base", f"{m[1]}_{{\\text{{{m[2]}}}}}"))
    if m := ROOT.fullmatch(a):
        yield "root", f"{m[1]}\\cdot\\sqrt{{{m[2]}}}" if m[1] else f"{m[2]}^{{1/2}}"
        yield "root", f"\\sqrt{{{int(m[1] or 1) ** 2 * int(m[2])}}}"
        yield "root", f"\\frac{{{int(m[1] or 1) * int(m[2])}}}{{\\sqrt{{{m[2]}}}}}"
    if MATRIX.fullmatch(a):
        yield "bmatrix", a.replace("pmatrix", "bmatrix")
        yield "matrix frac", re.sub(r"(-?)(\d+)/(\d+)", r"\1\\frac{\2}{\3}", a)
        yield "matrix spaces", a.replace(" ", "")if "& " not in a else a.replace(" & ", "&")
    if is_bare_list(a) and "=" not in a:
        items = parts(a)
        yield "list reversed", ", ".join(reversed(items))
        yield "list with and", ", ".join(items[:-1]) + " \\text{ and } " + items[-1]
        yield "list as set", "\\{" + ", ".join(items) + "\\}"
    if is_tuple(a):
        yield "tuple spaces", re.sub(r"\s*,\s*", " , ", a)
        yield "tuple frac", re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", a)
    if POLYNOMIAL.fullmatch(a) and re.search("[a-z]", a) and "=" not in a and re.search(r" ?[+-] ?", a[1:]):
        terms = re.findall(r"[+-]?[^+-]+", a.replace(" ", ""))
        if len(terms) > 1:
            yield "terms reversed", "".join(t if t[0] in "+-" else "+" + t for t in reversed(terms)).lstrip("+")
            yield "in brackets", f"({a})"


def digits(text: str) -> list[str]:
    return re.findall(r"\d", text)


def harmful(a: str, rng: random.Random, others: list[str]) -> Iterator[tuple[str, str]]:
    """Changes that make another answer."""
    for _ in range(2):
        b = rng.choice(others)
        if digits(b) == digits(a) and (digits(a) or b.lower() == a.lower()):
            continue
        if value(a) is not None and value(a) == value(b):
            continue
        yield "another item's", b
    where = [m.start() for m in re.finditer(r"\d", a)]
    for at in rng.sample(where, min(2, len(where))):
        yield "one digit", a[:at] + rng.choice([d for d in "123456789" if d != a[at]]) + a[at + 1 :]
    v = value(a)
    if v:
        yield "sign", a[1:] if a.startswith("-") else f"-{a}"
    elif not re.search(r"text|mbox|=|in|_|,|\\\$|begin|pm|[(\[{]", a) and v is None:
        yield "sign", f"-({a})"
    if re.match(r"[xy] ?= ?[^-]", a):
        left, right = a.split("=")
        yield "sign", f"{left}= -({right.strip()})"
    if v:
        for name, factor in (("times 100", 100), ("over 100", Fraction(1, 100)), ("times 10", 10), ("plus one", None)):
            w = v + 1 if factor is None else v * factor
            yield name, str(w) if w.denominator == 1 else f"\\frac{{{w.numerator}}}{{{w.denominator}}}"
        if abs(v) != 1 and v.denominator > 1:
            yield "upside down", f"\\frac{{{v.denominator}}}{{{v.numerator}}}"
        yield "in a tuple", f"({a}, {a})"
        yield "with another", f"{a}, {rng.randrange(1000, 9999)}"
        yield "wrong unit name", f"{a} + x"
        yield "root of", f"\\sqrt{{{a}}}" if abs(v) not in (0, 1) and v > 0 else f"{a}^2 + 7"
    if is_tuple(a):
        items = parts(a)
        if items[0] != items[-1]:
            yield "swapped", "(" + ", ".join([items[-1], *items[1:-1], items[0]]) + ")"
        yield "one fewer", "(" + ", ".join(items[:-1]) + ")"
        yield "first sign", "(" + ", ".join([f"-({items[0]})", *items[1:]]) + ")" if items[0] != "0" else "(1, 2, 3, 4)"
        if len(items) > 2 or "infty" not in a:
            yield "as a set", "\\{" + ", ".join(items) + "\\}"
    if is_bare_list(a):
        yield "one fewer", ", ".join(parts(a)[:-1])
        yield "one more", a + ", 9871"
    if (m := INTERVAL.fullmatch(a)) and not ("infty" in m[2] and "infty" in m[3]):
        swap = {"(": "[", "[": "(", ")": "]", "]": ")"}
        if "infty" not in m[2] and m[1] + m[4] != "()":
            yield "bracket", swap[m[1]] + m[2] + "," + m[3] + m[4]
        if "infty" not in m[3] and m[1] + m[4] != "()":
            yield "bracket", m[1] + m[2] + "," + m[3] + swap[m[4]]
    if BASED.fullmatch(a):
        yield "another base", a[:-1].rstrip("_{") + "_7" if "_7" not in a and not a.endswith("7}") else a
    if MATRIX.fullmatch(a):
        inner = MATRIX.fullmatch(a)[1]
        rows = inner.split("\\\\")
        yield "row missing", "\\begin{pmatrix}" + "\\\\".join(rows[:-1]) + "\\end{pmatrix}"
        if rows[0].strip() != rows[-1].strip():
            yield "rows swapped", "\\begin{pmatrix}" + "\\\\".join([rows[-1], *rows[1:-1], rows[0]]) + "\\end{pmatrix}"
    if WORD.fullmatch(a) or OPTION.fullmatch(a):
        yield "another word", rng.choice(["north", "odd", "hyperbola", "Alice", "J", "none of these"])
    yield "empty", ""
    yield "a sentence", "I do not know"


def pairs(answers: list[str], seed: int = 0) -> list[tuple[str, str, str, bool]]:
    rng = random.Random(seed)
    out = []
    for a in answers:
        out += [(rule, a, b, True) for rule, b in harmless(a, rng)]
        out += [(rule, a, b, False) for rule, b in harmful(a, rng, answers)]
    return out
