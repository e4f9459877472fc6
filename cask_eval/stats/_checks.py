"""What every statistic asks of its arguments, kept apart from the arithmetic."""

from __future__ import annotations

from typing import Literal, get_args

Alternative = Literal["two-sided", "greater", "less"]


def check_alternative(alternative: str) -> None:
    if alternative not in get_args(Alternative):
        raise ValueError(f"alternative is {alternative!r}; use one of {', '.join(get_args(Alternative))}")


def check_inside(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low < value < high (NaN fails too)."""
    if not low < value < high:
        raise ValueError(f"{name} is {value}; it must lie between {low} and {high}, ends excluded")


def check_binary(procedure: str, samples: int) -> None:
    if samples != 1:
        raise ValueError(
            f"{procedure} needs one sample per problem, but there are {samples}; "
            "sign_flip and paired_bootstrap take several"
        )
