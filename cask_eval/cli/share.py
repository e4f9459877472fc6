"""Decimal options, read as they are written: 0.05 is one twentieth, not the float next to it."""

from __future__ import annotations

from fractions import Fraction

import click


class Share(click.ParamType):
    """A decimal between 0 and 1, as a Fraction. `hint` is a value that would do; one that is `closed` may be 1, and one
    that is `signed` may be below 0."""

    name = "decimal"

    def __init__(self, hint: str, *, closed: bool = False, signed: bool = False):
        self.hint, self.closed, self.signed = hint, closed, signed

    def convert(self, value, param, ctx) -> Fraction:
        if isinstance(value, Fraction):
            return value
        from decimal import Decimal, InvalidOperation

        try:
            share = Fraction(Decimal(value))
        except (InvalidOperation, ValueError, OverflowError):
            self.fail(f"{value!r} is not a decimal number; give one such as {self.hint}", param, ctx)
        lowest = -1 if self.signed else 0
        if not (lowest < share < 1 or self.closed and share == 1):
            end = "1 or less" if self.closed else "below 1"
            self.fail(f"{value} must be above {lowest} and {end}, such as {self.hint}", param, ctx)
        return share
