"""Units, currencies and number words, as they stand behind (or, for money, before) a number.

A unit says what a number counts. One that is missing on one side is no error; two that differ are. Nothing is
converted: 5 m is not 500 cm, and a percent sign is a unit like any other.
"""

from __future__ import annotations

import re

__all__ = ["KNOWN_BARE", "MULTIPLIERS", "NUMBERS", "canonical_unit", "is_word_unit"]

_NAMES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "dm": "dm decimeter decimetre",
    "m": "m meter metre", "km": "km kilometer kilometre", "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard",
    "mi": "mi mile", "mg": "mg milligram", "g": "g gram gramme", "kg": "kg kilogram kilo", "lb": "lb lbs pound",
    "oz": "oz ounce", "t": "tonne ton", "ms": "ms millisecond", "s": "s sec second", "min": "min minute",
    "h": "h hr hour", "day": "day", "week": "week wk", "month": "month", "year": "year yr",
    "ml": "ml milliliter millilitre",
    "l": "l liter litre", "gal": "gal gallon", "pt": "pint", "qt": "quart qt", "cup": "cup", "deg": "deg degree",
    "rad": "rad radian", "%": "% percent pct percentage percents", "$": "$ dollar usd buck",
    "cent": "cent ¢ penny pennies",
    "eur": "euro eur", "gbp": "gbp", "mph": "mph", "kmh": "kmh kph", "N": "newton", "J": "joule", "W": "watt",
    "kW": "kw kilowatt", "V": "volt", "A": "ampere amp", "Hz": "hz hertz", "Pa": "pascal", "K": "kelvin",
    "C": "celsius", "F": "fahrenheit", "mol": "mol mole", "acre": "acre", "dozen": "dozen", "point": "point pt pts",
    "one": "unit",
}  # fmt: skip
_UNITS = {spelling: name for name, spellings in _NAMES.items() for spelling in spellings.split()}
#: Units of one letter, which stand for variables unless they are set as text or stand alone behind a space.
_SHORT = {name for name in _UNITS if len(name) == 1 and name.isalpha()}
#: Two letters and more that are units even outside \text, right behind a number.
KNOWN_BARE = {u for u in _UNITS if len(u) >= 2} - {"pt", "one"}

#: Numbers that are written as one word.
NUMBERS = {
    word: n
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | dict(zip("thirty forty fifty sixty seventy eighty ninety".split(), range(30, 100, 10), strict=True))  # fmt: skip
MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# Words that make something else of what stands before them than a number with its unit.
_NO_UNIT = {
    "is", "are", "not", "no", "and", "or", "plus", "minus", "times", "less", "more", "mod", "modulo", "remainder", "if",
    "when", "where", "for", "with", "than", "to", "wrong", "between", "from", "none", "undefined", "by", "over",
    "choose",
    "base", "r", "x", "y", "z", "n", "i", "e", "pi", "because", "but", "so", "then", "was", "does", "cannot", "at",
    "infinity", "half", "quarter", "third", "divided", "squared", "cubed", "root",
}  # fmt: skip


def _single(word: str) -> str:
    """A word of the lexicon, without its plural s."""
    low = word.lower()
    if word in ("N", "J", "W", "V", "A", "K", "C", "F"):
        return word
    if low in _UNITS:
        return _UNITS[low]
    for ending in ("es", "s"):
        if low.endswith(ending) and low[: -len(ending)] in _UNITS and len(low) > 2:
            return _UNITS[low[: -len(ending)]]
    return low[:-1] if low.endswith("s") and len(low) > 3 and not low.endswith("ss") else low


def is_word_unit(words: list[str], bare: bool) -> bool:
    """Whether words behind a number can be its unit. `bare` words were not set as text, and only known units count."""
    low = [w.lower() for w in words]
    if not words or len(words) > 5 or any(w in _NO_UNIT for w in low):
        return False
    if bare:
        return all(w in KNOWN_BARE or _single(w) in _NAMES and len(w) > 2 or w in ("per", "of", "square", "cubic")
                   or w.isalpha() and len(w) > 3 for w in low)  # fmt: skip
    return all(re.fullmatch(r"[^\W\d_]+", w) for w in low)


def canonical_unit(words: list[str], power: int = 1) -> str:
    """One name for a unit; "" for those that say nothing (units, square units)."""
    low = [w for w in words if w.lower() not in ("of", "the", "a", "an", "in", "total", "each") or len(words) == 1]
    joined = "".join(low).lower()
    if joined in ("kmperhour", "kilometersperhour", "kmperh", "kilometresperhour"):
        return "kmh"
    if joined in ("milesperhour", "miperhour"):
        return "mph"
    names = []
    for word in low:
        w = word.lower()
        if w in ("square", "sq"):
            power = 2
        elif w in ("cubic", "cu"):
            power = 3
        elif w in ("squared", "cubed"):
            power = 2 if w == "squared" else 3
        else:
            names.append(_single(word))
    name = " ".join(names)
    if name in ("one", ""):
        return ""
    return name if power == 1 else f"{name}^{power}"
