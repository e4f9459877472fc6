"""Real differences as whole numbers, and sums of them that are exact before they are rounded once.

A permutation test counts how often a sum reaches the observed one, so equal sums must compare as equal. Sums of floats
do not: 0.1 + 0.2 − 0.3 is 5.6e-17. Here the values are brought to one scale as integers, and a sum of integers is
rounded to a float once, at its end. Correct rounding is monotone: equal sums stay equal, and no sum changes sides. Two
sums less than 1.1e-16 of their size apart may become equal, which counts as reaching and can only raise p.

A difference of two floats is itself rounded: 0.3 − 0.2 and 0.2 − 0.1 are not the same number. Pass `Decimal` or
`Fraction` differences where the values were printed as decimals.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from math import gcd, lcm

import numpy as np

Real = int | float | Decimal | Fraction

# A sum is split into two parts of integers; each part of up to 2²² values stays below 2⁵³, so that BLAS adds it exactly
# in whatever order, and their own sum is the one rounding.
_BITS = 31
MOST = 2**22


def whole(values: Iterable[Real]) -> tuple[np.ndarray, Fraction]:
    """(integers [n] int64, unit): the smallest integers such that `values` are integers·unit.

    Integers of more than 62 bits lose their lowest ones: a float has 53. Raises ValueError on NaN, an infinity, no
    value at all, or more than 2²² of them.
    """
    try:
        exact = [Fraction(v) for v in values]
    except (ValueError, OverflowError):
        raise ValueError("a difference is NaN or infinite; leave its pair out or state a rule for it") from None
    if not 0 < len(exact) <= MOST:
        raise ValueError(f"{len(exact)} differences were given; between 1 and {MOST} are needed")
    scale = lcm(*(v.denominator for v in exact))
    integers = [v.numerator * (scale // v.denominator) for v in exact]
    unit = gcd(*integers) or 1
    integers = [v // unit for v in integers]
    lost = max(0, max(abs(v) for v in integers).bit_length() - 2 * _BITS)
    kept = np.array([(abs(v) >> lost) * (1 if v > 0 else -1) for v in integers], dtype=np.int64)
    return kept, Fraction(unit << lost, scale)


def signed_sums(signs: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """[rows, cells]: Σ sign·value of signs [rows, n] and integers [cells, n] from `whole`, each rounded once."""
    high, low = _parts(integers)
    return _joined(signs @ high.T, signs @ low.T)


def drawn_sums(drawn: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """[rows]: Σ of the drawn values, of indices [rows, n] and integers [n] from `whole`, each rounded once."""
    high, low = _parts(integers)
    return _joined(high[drawn].sum(axis=1), low[drawn].sum(axis=1))


def total(integers: np.ndarray) -> np.ndarray:
    """Σ over the last axis, rounded once."""
    high, low = _parts(integers)
    return _joined(high.sum(axis=-1), low.sum(axis=-1))


def _parts(integers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The shift rounds down, so the lower part is never negative.
    return (integers >> _BITS).astype(np.float64), (integers & (2**_BITS - 1)).astype(np.float64)


def _joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return high * 2.0**_BITS + low
