"""Whether two expression trees are one value: exactly where both are rational, else at fixed points to 60 digits.

Two expressions are the same when they agree to 35 digits at every point where both are defined, and not the same when
they differ in the first 25 digits at any. Values that are very small or very large get a second look with more digits,
so that the rest of a difference is told from a tiny number, and a large number from its neighbour. The points depend
on the variables' names alone. Costs are bounded: sizes are checked before a power or a factorial is taken. mpmath's
precision is a global, so this runs in a worker process.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

from cask_eval.grading.expression import Tree, variables

__all__ = ["APPROXIMATE", "Huge", "Undefined", "approximates", "rational", "same", "terminating"]

DPS = 60
#: Values between these powers of ten are compared at `DPS` digits; up to LARGEST (down to 1/LARGEST) with more.
ORDINARY, LARGEST = (-15, 25), 20_000
#: Largest size, in bits, of an exact number.
BITS = 200_000
#: Largest number whose factorial is taken exactly.
FACTORIAL = 10_000
#: Largest binary exponent of a real number.
SCALE = 1_000_000
#: How far a decimal may lie from the value that it approximates, relative to it.
APPROXIMATE = Fraction(1, 10**6)


class Undefined(Exception):
    """There is no value here, or none in the real numbers."""


class Huge(Exception):
    """The value's magnitude is beyond 2^SCALE."""


class Inexact(Exception):
    """The value is not a rational number that can be worked out exactly."""


# --- exact -------------------------------------------------------------------------------------------------------


def rational(tree: Tree) -> Fraction | None:
    """The exact value, or None when it is not rational or not small enough. Raises Undefined on division by zero."""
    try:
        return _exact(tree)
    except Inexact:
        return None


def _exact(tree: Tree) -> Fraction:
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "neg":
        return -_exact(tree[1])
    if kind in ("add", "mul", "div"):
        a, b = _exact(tree[1]), _exact(tree[2])
        if kind == "div" and not b:
            raise Undefined("division by zero")
        return _small(a + b if kind == "add" else a * b if kind == "mul" else a / b)
    if kind == "pow":
        return _power(_exact(tree[1]), _exact(tree[2]))
    if kind == "fn":
        return _function(tree[1], [_exact(part) for part in tree[2:]])
    raise Inexact


def _small(x: Fraction) -> Fraction:
    if x.numerator.bit_length() + x.denominator.bit_length() > BITS:
        raise Inexact
    return x


def _power(a: Fraction, b: Fraction) -> Fraction:
    if b.denominator != 1:
        if a < 0 or b.denominator > 12:
            raise Inexact
        return _power(_root(a, b.denominator), Fraction(b.numerator))
    if not a:
        if b <= 0:
            raise Undefined("zero to a power that is not positive") if b else Inexact
        return a
    if abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > BITS:
        if abs(a) == 1:
            return a if b % 2 else Fraction(1)
        raise Inexact
    return a ** int(b)


def _root(a: Fraction, k: int) -> Fraction:
    return Fraction(_whole_root(a.numerator, k), _whole_root(a.denominator, k))


def _whole_root(n: int, k: int) -> int:
    if n < 0:
        if k % 2 == 0:
            raise Inexact
        return -_whole_root(-n, k)
    if k == 2:
        r = math.isqrt(n)
    else:
        low, high = 0, 1 << (n.bit_length() // k + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**k <= n else (low, middle - 1)
        r = low
    if r**k != n:
        raise Inexact
    return r


def _function(name: str, parts: list[Fraction]) -> Fraction:
    a = parts[0]
    b = parts[1] if len(parts) > 1 else None
    if name == "root" and b is not None and b.denominator == 1 and 1 <= b <= 12:
        return _root(a, int(b))
    if name == "factorial" and a.denominator == 1 and 0 <= a <= FACTORIAL:
        return _small(Fraction(math.factorial(int(a))))
    if name == "abs":
        return abs(a)
    if name in ("floor", "ceil"):
        return Fraction(math.floor(a) if name == "floor" else math.ceil(a))
    if name in ("max", "min") and b is not None:
        return max(a, b) if name == "max" else min(a, b)
    if b is not None and a.denominator == b.denominator == 1:
        m, n = int(a), int(b)
        if name == "binomial" and 0 <= n <= m <= FACTORIAL:
            return Fraction(math.comb(m, n))
        if name in ("gcd", "lcm"):
            return Fraction(getattr(math, name)(m, n))
    raise Inexact


def terminating(x: Fraction) -> bool:
    """Whether a decimal fraction writes it exactly."""
    d = x.denominator
    while d % 2 == 0:
        d //= 2
    while d % 5 == 0:
        d //= 5
    return d == 1


# --- real and complex --------------------------------------------------------------------------------------------


def _points(names: list[str]) -> list[dict[str, Fraction]]:
    """Seven assignments: three positive, two of either sign, two of whole numbers."""
    ranges = [(0.1, 0.9), (1, 3), (3, 9), (-2, 2), (-7, 7)]
    out: list[dict[str, Fraction]] = []
    for k, (low, high) in enumerate(ranges):
        point = {}
        for name in names:
            seed = hashlib.sha256(f"{k}/{name}".encode()).digest()
            part = Fraction(int.from_bytes(seed[:6], "big"), 1 << 48)
            point[name] = Fraction(low) + part * (Fraction(high) - Fraction(low))
        out.append(point)
    for k in (2, 5):
        out.append({name: Fraction(k + 3 * i + i * i) for i, name in enumerate(names)})
    return out


def same(a: Tree, b: Tree) -> bool | None:
    """Whether two expressions are equal wherever both are defined; None when that cannot be told."""
    names = sorted(variables(a) | variables(b))
    if len(names) > 16:
        return None
    known = 0
    whole_only = True
    points = _points(names) if names else [{}]
    for k, point in enumerate(points):
        verdict = _agree(a, b, point, bool(names))
        if verdict is False:
            return False
        if verdict:
            known += 1
            whole_only = whole_only and k >= 5
    return True if known >= (1 if not names else 2) else None


def _agree(a: Tree, b: Tree, point: dict[str, Fraction], real: bool) -> bool | None:
    import mpmath

    in_reals = real and not (_imaginary(a) or _imaginary(b))

    def value(tree: Tree):
        return _value(tree, point, mpmath, in_reals)

    def told(gap) -> bool | None:
        return True if gap <= mpmath.mpf(10) ** -35 else False if gap >= mpmath.mpf(10) ** -25 else None

    with mpmath.workdps(DPS):
        found = []
        for tree in (a, b):
            try:
                found.append(value(tree))
            except Huge:
                found.append(None)
            except _NOWHERE:
                return None
        x, y = found
        if x is None or y is None:
            return None if x is y else False
        if mpmath.isnan(x) or mpmath.isnan(y):
            return None
        if mpmath.isinf(x) or mpmath.isinf(y):
            return bool(x == y)
        size = max(abs(x), abs(y))
        if not size:
            return True
        verdict, power = told(abs(x - y) / size), int(mpmath.floor(mpmath.log10(size)))
    if ORDINARY[0] <= power <= ORDINARY[1] or (verdict is False and power > 0):
        return verdict
    if abs(power) > LARGEST:
        return verdict and None
    with mpmath.workdps(DPS + 2 * abs(power)):
        try:
            x, y = value(a), value(b)
        except (Huge, *_NOWHERE):
            return None
        if power > 0:
            return told(abs(x - y))  # to 35 digits behind the point
        again = max(abs(x), abs(y))
        # What more digits make smaller was nothing but what was left of a difference.
        return True if again < size * mpmath.mpf(10) ** -10 else told(abs(x - y) / again)


_NOWHERE = (Undefined, ZeroDivisionError, ValueError, OverflowError, TypeError, ArithmeticError)


def _imaginary(tree: Tree) -> bool:
    return tree == ("const", "i") or any(isinstance(part, tuple) and _imaginary(part) for part in tree[1:])


def _fits(x, mpmath):
    if not mpmath.isfinite(x):
        return x
    if abs(mpmath.mag(x)) > SCALE and x != 0:
        raise Huge
    return x


def _value(tree: Tree, point: dict[str, Fraction], mp, real: bool):
    kind = tree[0]
    if kind == "num":
        return _fits(mp.mpf(tree[1].numerator) / tree[1].denominator, mp)
    if kind == "var":
        x = point[tree[1]]
        return mp.mpf(x.numerator) / x.denominator
    if kind == "const":
        return {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1), "inf": mp.inf}[tree[1]] + 0
    if kind == "neg":
        return -_value(tree[1], point, mp, real)
    parts = [_value(part, point, mp, real) for part in tree[1:] if isinstance(part, tuple)]
    if kind == "fn":
        return _fits(_called(tree[1], parts, mp, real), mp)
    a, b = parts
    if kind == "add":
        return _fits(a + b, mp)
    if kind == "mul":
        return _fits(a * b, mp)
    if kind == "div":
        if b == 0 or (mp.isinf(a) and mp.isinf(b)):
            raise Undefined
        return _fits(a / b, mp)
    return _fits(_raised(a, b, mp, real), mp)


def _raised(a, b, mp, real: bool):
    if not (mp.isfinite(a) and mp.isfinite(b)):
        raise Undefined
    if a == 0:
        if mp.re(b) <= 0:
            raise Undefined
        return mp.mpf(0)
    whole = mp.isint(b)
    if real and not whole and mp.im(a) == 0 and mp.re(a) < 0:
        raise Undefined
    logarithm = mp.log(abs(a), 2)
    if logarithm != 0 and abs(b) > SCALE / max(abs(logarithm), mp.mpf(10) ** -9):
        if mp.re(b) * logarithm > 0 and mp.im(b) == 0:
            raise Huge
        raise Undefined
    return mp.power(a, int(b)) if whole and abs(b) < 10**9 and mp.im(b) == 0 else mp.power(a, b)


def _called(name: str, parts: list, mp, real: bool):
    a = parts[0]
    if not all(mp.isfinite(p) for p in parts):
        raise Undefined
    if name == "root":
        k = parts[1]
        if not mp.isint(k) or not 1 <= k <= 1000:
            raise Undefined
        if mp.im(a) == 0 and mp.re(a) < 0:
            if int(k) % 2:
                return -mp.root(-a, int(k))
            if real:
                raise Undefined
        return mp.sqrt(a) if k == 2 else mp.root(a, int(k))
    if name == "abs":
        return abs(a)
    if name in ("ln", "log", "lg"):
        if real and mp.re(a) <= 0 or a == 0:
            raise Undefined
        if len(parts) > 1:
            return mp.log(a) / mp.log(parts[1])
        # log without a base is the natural one to some and the decimal one to others; both sides are read alike.
        return mp.log(a) if name == "ln" else mp.log(a, 10)
    if name == "exp":
        if abs(a) > SCALE:
            raise Huge if mp.re(a) > 0 else Undefined
        return mp.exp(a)
    if name == "factorial":
        if abs(a) > 50_000:
            raise Huge if mp.re(a) > 0 and mp.im(a) == 0 else Undefined
        if mp.im(a) != 0 or mp.re(a) < 0:
            raise Undefined
        return mp.factorial(a)
    if name == "binomial":
        if any(mp.im(p) != 0 or abs(p) > 50_000 for p in parts):
            raise Undefined
        return mp.binomial(*parts)
    if any(mp.im(p) != 0 for p in parts) and name in ("floor", "ceil", "max", "min", "gcd", "lcm"):
        raise Undefined
    if name in ("floor", "ceil"):
        if abs(a) > 1e30:
            raise Undefined
        return mp.floor(a) if name == "floor" else mp.ceil(a)
    if name in ("max", "min"):
        return max(parts) if name == "max" else min(parts)
    if name in ("gcd", "lcm"):
        if not all(mp.isint(p) and abs(p) < 10**15 for p in parts):
            raise Undefined
        return mp.mpf(getattr(math, name)(int(parts[0]), int(parts[1])))
    if abs(a) > 10**6 and name in ("sinh", "cosh", "tanh", "coth"):
        raise Undefined
    if abs(a) > mp.mpf(10) ** 20:
        raise Undefined
    if name in ("arcsin", "arccos"):
        if real and abs(a) > 1:
            raise Undefined
        return mp.asin(a) if name == "arcsin" else mp.acos(a)
    if name == "arctan":
        return mp.atan(a)
    if name in ("tan", "sec") and abs(mp.cos(a)) < mp.mpf(10) ** -40:
        raise Undefined
    if name in ("cot", "csc") and abs(mp.sin(a)) < mp.mpf(10) ** -40:
        raise Undefined
    return getattr(mp, name)(a)


def approximates(decimal: str, value: Tree) -> bool:
    """Whether a decimal, as written, is `value` cut or rounded at its last digit, and within `APPROXIMATE` of it."""
    import mpmath

    if "." not in decimal:
        return False
    d = Fraction(decimal)
    exact = rational(value)
    if exact is not None and terminating(exact):
        return False
    with mpmath.workdps(DPS):
        try:
            v = _value(value, {}, mpmath, True)
        except (Undefined, Huge, ZeroDivisionError, ValueError, OverflowError, TypeError, KeyError):
            return False
        if mpmath.im(v) != 0 or not mpmath.isfinite(v) or v == 0:
            return False
        gap = abs(mpmath.mpf(d.numerator) / d.denominator - v)
        return bool(gap <= mpmath.mpf(10) ** -len(decimal.partition(".")[2]) and gap <= abs(v) / 10**6)


def ratio_at_points(f: Tree, g: Tree, positive: bool) -> bool | None:
    """Whether f / g is the same number (a positive one, if so asked) wherever both are defined."""
    import mpmath

    names = sorted(variables(f) | variables(g))
    ratios = []
    with mpmath.workdps(DPS):
        for point in _points(names):
            try:
                a, b = (_value(tree, point, mpmath, True) for tree in (f, g))
            except (Undefined, Huge, ZeroDivisionError, ValueError, OverflowError, TypeError, ArithmeticError):
                continue
            if b == 0 or a == 0 or not (mpmath.isfinite(a) and mpmath.isfinite(b)):
                continue
            ratios.append(a / b)
        if len(ratios) < 3:
            return None
        first = ratios[0]
        if any(abs(r - first) > abs(first) * mpmath.mpf(10) ** -25 for r in ratios[1:]):
            return False
        return bool(not positive or (mpmath.im(first) == 0 and first > 0))
