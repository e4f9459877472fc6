"""The last stage: math-verify, guarded before and after.

It is asked only where the exact paths cannot tell, and only about short answers without a construction that is known to
explode. A True is taken back where math-verify is known to be too generous. Runs in a worker process only.
"""

from __future__ import annotations

import logging
from typing import Any

from cask_eval.grading.normalise import Token, write

__all__ = ["LONGEST", "guard", "load", "plain", "verify"]

LONGEST = 600
_EXPONENT = 100_000
_FACTORIAL = 2_000
_BINOMIAL = 10_000


def guard(items: list[Token]) -> str | None:
    """Why an answer is not handed to math-verify, or None."""
    if len(write(items)) > 2 * LONGEST:
        return "too long"
    stack: list[bool] = []  # for every open brace: does it hold an exponent?
    raised = False  # the token before was ^
    for k, t in enumerate(items):
        if t.kind == "num":
            if len(t.value) > 300:
                return "a very long number"
            inside = raised or any(stack)
            if inside and float(t.value) >= _EXPONENT:
                return "a very large exponent"
            following = items[k + 1] if k + 1 < len(items) else None
            if following and following[:2] == ("op", "!") and float(t.value) > _FACTORIAL:
                return "a very large factorial"
        if t[:2] == ("cmd", "binom"):
            inside = items[k + 1 : k + 16]
            if any(u[:2] == ("op", "^") or u.kind == "num" and float(u.value[:300]) > _BINOMIAL for u in inside):
                return "a very large binomial coefficient"
        if t.kind == "op" and t.value == "!" and k and items[k - 1].value in ")}!":
            return "a factorial of an expression"
        if t.kind == "op" and t.value == "^":
            if any(stack) or (k >= 2 and items[k - 2][:2] == ("op", "^")):
                return "a power in an exponent"
            raised = True
            continue
        if t.kind == "op" and t.value == "{":
            stack.append(raised)
        elif t.kind == "op" and t.value == "}" and stack:
            stack.pop()
        raised = False
    return None


def load() -> Any:
    """The library; importing it takes about a second."""
    import math_verify

    logging.disable(logging.CRITICAL)
    return math_verify


def _parse(math_verify: Any, text: str) -> list[Any]:
    return math_verify.parse(
        f"${text}$",
        [math_verify.LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
        raise_on_error=False,
    )


def verify(gold: list[Token], answer: list[Token]) -> tuple[bool, str]:
    """(verdict, reason), by math-verify and the vetoes."""
    if _marks(gold) != _marks(answer):
        return False, "subscripts or primes differ"
    math_verify = load()
    g, a = _parse(math_verify, write(gold)), _parse(math_verify, write(answer))
    if not g or not a:
        return False, f"math-verify cannot read the {'reference' if not g else 'answer'}"
    same = math_verify.verify(
        g, a, allow_set_relation_comp=True, timeout_seconds=None, float_rounding=10, raise_on_error=True
    )
    if not same:
        return False, "math-verify: different"
    veto = _veto(g[0], a[0])
    return (False, f"math-verify: equal, overruled: {veto}") if veto else (True, "math-verify: equal")


_LIMITED = {"int", "sum", "prod", "lim", "log", "max", "min", "sup", "inf", "iint", "oint", "bigcup", "bigcap", "frac"}


def _marks(items: list[Token]) -> list[tuple[str, str]]:
    """What math-verify drops: subscripts of names and numbers, primes, and words set as text."""
    found = [("text", t.value.casefold()) for t in items if t.kind == "text" and len(t.value) > 1]
    for k, t in enumerate(items):
        if t[:2] == ("op", "'"):
            found.append(("prime", items[k - 1].value if k else ""))
        named = k and items[k - 1].kind in ("word", "num", "text", "cmd") and items[k - 1].value not in _LIMITED
        if t[:2] == ("op", "_") and named:
            rest = [u.value for u in items[k + 1 : k + 8]]
            inside = rest[1 : rest.index("}")] if rest[:1] == ["{"] and "}" in rest else rest[:1]
            found.append((items[k - 1].value, " ".join(inside)))
    return sorted(found)


def _veto(gold: Any, answer: Any) -> str | None:
    from sympy import Eq, Expr, FiniteSet, Float, Set, Tuple
    from sympy.core.relational import Relational

    if isinstance(gold, Set) != isinstance(answer, Set) and isinstance(gold, Tuple) != isinstance(answer, Tuple):
        return "a set for a tuple"
    sets = isinstance(gold, Set) and isinstance(answer, Set)
    if sets and isinstance(gold, FiniteSet) != isinstance(answer, FiniteSet):
        return "a set for an interval"
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        if isinstance(gold, Eq) and isinstance(answer, Eq):
            quotient = ((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs)).simplify()
            if gold != answer and quotient.free_symbols and (gold.lhs != answer.lhs):
                return "equations with different sides"
            if not quotient.free_symbols and (quotient.is_zero or quotient.is_finite is False):
                return "equations with different sides"
        return None
    if isinstance(gold, Expr) and isinstance(answer, Expr) and not (gold.free_symbols or answer.free_symbols):
        try:
            x, y = gold.evalf(30), answer.evalf(30)
            if not abs(x - y) <= Float("1e-6") * max(abs(x), abs(y)):
                return "values differ by more than 1e-6"
        except (TypeError, ValueError, AttributeError):
            return None
    return None


def plain(gold: str, output: str) -> bool:
    """What math-verify says without any of this: the reference between dollar signs, the whole output, its defaults."""
    math_verify = load()
    marked = gold if "$" in gold or "\\boxed" in gold or "\\(" in gold or "\\[" in gold else f"${gold}$"
    g = math_verify.parse(marked, parsing_timeout=None)
    a = math_verify.parse(output, parsing_timeout=None)
    return bool(math_verify.verify(g, a, timeout_seconds=None))
