"""Decimal options, read as they are written: 0.05 is one twentieth, not the float next to it."""

from __future__ import annotations

from fractions import Fraction

import click


class Share(click.ParamType):
    """A decimal between 0 and 1, as a Fraction. `hint` is a value that would do; `closed` admits 1, `zero` admits 0,
    and `signed` what lies above −1."""

    name = "decimal"

    def __init__(self, hint: str, *, closed: bool = False, zero: bool = False, signed: bool = False):
        self.hint, self.closed, self.zero, self.lowest = hint, closed, zero, -1 if signed else 0

    def convert(self, value, param, ctx) -> Fraction:
        if isinstance(value, Fraction):
            return value
        from decimal import Decimal, InvalidOperation

        try:
            share = Fraction(Decimal(value))
        except (InvalidOperation, ValueError, OverflowError):
            self.fail(f"{value!r} is not a decimal number; give one such as {self.hint}", param, ctx)
        if not (self.lowest < share < 1 or self.closed and share == 1 or self.zero and share == 0):
            start = f"at least {self.lowest}" if self.zero else f"above {self.lowest}"
            end = "at most 1" if self.closed else "below 1"
            self.fail(f"{value} must be {start} and {end}, such as {self.hint}", param, ctx)
        return share
