"""How numbers are printed. One rule runs through all of it: rounding never hides on which side of zero, or of the
registered level, a number lies; then more digits are shown.

Inputs are the analysis document's numbers: decimal strings, fractions "p/q", and for measurements the empty string
where there was nothing to measure. Arithmetic is exact, so that the
printed report is the same on every platform.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EM DASH}"  # stands where there is nothing to print
_MOST_DIGITS = 9  # what the analysis document carries
_FLOAT_NOISE = Fraction(1, 10**6)  # percentage points; below this a bound is a zero that arithmetic left behind


def value(text: str | int) -> Fraction:
    """The number that `text` writes, exactly."""
    return Fraction(text)


def fixed(x: Fraction, digits: int) -> str:
    """`x` with so many decimals, halves rounded away from zero, with a true minus sign. Zero has no sign."""
    units = int(abs(x) * 10**digits + Fraction(1, 2))
    whole, part = divmod(units, 10**digits)
    sign = MINUS if x < 0 and units else ""
    return f"{sign}{whole:,}" + (f".{part:0{digits}d}" if digits else "")


def points(text: str, digits: int = 1) -> str:
    """A difference of shares in percentage points, signed: "0.08" → "+8.0"."""
    return signed(text, 100, digits)


def signed(text: str, factor: int, digits: int) -> str:
    """A difference, multiplied by `factor`, with its sign: "0.08" → "+0.0800"."""
    x = value(text) * factor
    if abs(x) < _FLOAT_NOISE * factor / 100:
        return fixed(Fraction(0), digits)
    while _rounds_to(x, Fraction(0), digits):
        digits += 1
    return ("+" if x > 0 else "") + fixed(x, digits)


def spread(text: str, digits: int = 1) -> str:
    """A standard error in percentage points: no sign."""
    return points(text, digits).lstrip("+")


def p_value(text: str, level: str | None = None) -> str:
    """As journals print it: ".0433", "< .0001", "> .9999". Beside a `level` there are as many digits as it takes to
    see which side p lies on."""
    p, digits = value(text), 4
    if p >= 1:
        return "1"
    smallest = Fraction(1, 10_000)
    edges = [Fraction(0)] if level is None else [Fraction(0), value(level)]
    if p < smallest and (level is None or value(level) >= smallest):
        return "< .0001"
    while any(p != edge and _rounds_to(p, edge, digits) for edge in edges) and digits < _MOST_DIGITS:
        digits += 1
    printed = fixed(p, digits)
    return "> .9999" if printed.startswith("1") else printed.removeprefix("0")


def relation(printed: str, symbol: str = "p") -> str:
    """A printed p-value in a sentence: "p = .0433", "p < .0001"."""
    return f"{symbol} {printed}" if printed[0] in "<>" else f"{symbol} = {printed}"


def percent(text: str, digits: int = 1) -> str:
    """A share: "0.62" → "62.0 %"; a dash for the empty text that stands for a number nobody could measure."""
    if not text:
        return DASH
    share = value(text) * 100
    while share > 0 and digits < _MOST_DIGITS and _rounds_to(share, Fraction(0), digits):
        digits += 1
    return fixed(share, digits) + "\N{NO-BREAK SPACE}%"


def level(text: str) -> str:
    """A confidence level without trailing zeros: "0.9875" → "98.75 %"."""
    printed = fixed(value(text) * 100, 3).rstrip("0").rstrip(".")
    return printed + "\N{NO-BREAK SPACE}%"


def alpha(text: str) -> str:
    """A level of significance as p-values are written: "0.05" → ".05"."""
    return text.removeprefix("0") if text.startswith("0.") else text


def ratio(text: str) -> str:
    return fixed(value(text), 3) if text else DASH


def entries(text: str | int) -> str:
    """Cache entries per layer and head."""
    return fixed(value(text), 1) if text != "" else DASH


def significant(x: float, digits: int = 4) -> str:
    """A finite number of unknown size."""
    return format(x + 0.0, f".{digits}g").replace("-", MINUS)


def bracket(low: str, high: str) -> str:
    """An interval of printed numbers."""
    return DASH if low == high == DASH else f"[{low}, {high}]"


def count(n: int | None) -> str:
    """A count; a dash when nothing was counted."""
    return DASH if n is None else f"{n:,}"


def span(low: int | None, high: int | None) -> str:
    """A range of counts; a dash when nothing was counted."""
    if low is None or high is None:
        return DASH
    return f"{low:,}" if low == high else f"{low:,}\N{EN DASH}{high:,}"


def params(given: Mapping[str, str | int | bool]) -> str:
    """Parameters as the protocol writes them, by name."""

    def one(v: str | int | bool) -> str:
        return str(v).lower() if isinstance(v, bool) else str(v)

    return ", ".join(f"{one_line(k)}={one_line(one(v))}" for k, v in sorted(given.items())) or DASH


def rounded(text: str) -> str:
    """Text with its long decimals rounded to four places; those that would round to a bound such as 0.95, which they
    are compared with, stay."""

    def short(found: re.Match[str]) -> str:
        near = fixed(Fraction(found[0]), 4)
        return found[0] if near.endswith("0") else near

    return re.sub(r"\d+\.\d{5,}", short, text)


def short(digest: str) -> str:
    """The first twelve hexadecimal digits."""
    return digest.removeprefix("sha256:")[:12]


def words(name: str) -> str:
    """A registered name as prose: "paired_bootstrap" → "paired bootstrap"."""
    special = {"mcnemar_exact": "McNemar exact", "mcnemar_midp": "McNemar mid-p"}
    return special.get(name, one_line(name).replace("_", " "))


def one_line(text: str) -> str:
    """Someone else's text on one line. Control and direction-changing characters, with which a text could show as
    something other than what it says (or steer a terminal), become U+FFFD."""
    collapsed = " ".join(text.split())
    return "".join("\N{REPLACEMENT CHARACTER}" if _unprintable(c) else c for c in collapsed)


def _unprintable(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") or c in (
        "\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
    )


def _rounds_to(x: Fraction, target: Fraction, digits: int) -> bool:
    """Whether `x` prints no differently from `target`, or on the wrong side of it."""
    unit = Fraction(1, 10**digits)
    printed = (1 if x >= 0 else -1) * int(abs(x) / unit + Fraction(1, 2)) * unit
    return (printed <= target) if x > target else (printed >= target)
