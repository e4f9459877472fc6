"""The line of an output that answers, and what stands in it: for tasks whose answers are a few numbers or names.

RULER counts an answer as right that occurs anywhere in the output, so that more, longer or contradictory answers
score. Here the first line that says anything is the answer, and it must name what was asked for and nothing else.
"""

from __future__ import annotations

import re

__all__ = ["first", "names_in", "numbers_in"]

# ``4,821`` is one number, ``4821,7151`` are two. What is part of a word, negative or a decimal is another number.
_NUMBER = re.compile(r"(?<![\w.-])([0-9]{1,3}(?:,[0-9]{3})+(?![\d,])|[0-9]+)(?!\w|\.\d)")
_THINKING = "</think>"


def first(output: str) -> str:
    """The first line with text in it after a reasoning model's last closing tag; empty when there is none."""
    text = output[output.rfind(_THINKING) + len(_THINKING) :] if _THINKING in output else output
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def numbers_in(line: str) -> list[str] | None:
    """The whole numbers in `line`, in order; None when it has digits in any other form, such as ``4821.5``."""
    found = [number.replace(",", "") for number in _NUMBER.findall(line)]
    return found if sum(map(len, found)) == sum(c in "0123456789" for c in line) else None


def names_in(line: str, known: frozenset[str]) -> list[str]:
    """The names of two words in `line` that are `known`, in order, without regard to case."""
    words = re.findall(r"[^\W\d_]+", line.casefold())
    return [pair for a, b in zip(words, words[1:]) if (pair := f"{a} {b}") in known]
