"""Finding the answer in a model's output, by a declared rule and in time linear in the text.

No regular expression here looks further than one line or can backtrack over more than a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cask_eval.grading.units import is_word_unit

__all__ = ["TAIL", "ExtractionRule", "Found", "extract", "read_gold"]

#: How much of the end of an output is looked at, in characters.
TAIL = 16_384
#: The longest text without a box or an announcement that can itself be an answer.
WHOLE = 1_000


class ExtractionRule(StrEnum):
    """Where an answer may stand; a rule tries its places in the order given here.

    boxed        the last balanced ``\\boxed{…}``, nothing else (the default)
    hash         what follows the last ``####`` on its line
    final        boxed, hash, then what "the answer is …" or "answer: …" announces
    answer       final, then the whole text, or its only formula, when it is short: for fields that hold an answer
    last-number  final, then the last number in the text: it rewards outputs that were cut off; only when asked for
    """

    BOXED = "boxed"
    HASH = "hash"
    FINAL = "final"
    ANSWER = "answer"
    LAST_NUMBER = "last-number"


@dataclass(frozen=True)
class Found:
    """`text` is the answer as it stands in the output, None when there is none; `where` says how it was found
    (``boxed``, ``hash``, ``anchor``, ``whole``, ``formula``, ``lastnum``, ``none``)."""

    text: str | None
    where: str


def extract(output: str, rule: ExtractionRule | str = ExtractionRule.BOXED) -> Found:
    """The answer in `output`. Raises ValueError on an unknown rule."""
    rule = ExtractionRule(rule)
    if not isinstance(output, str):
        raise ValueError(f"an output is a text, not {type(output).__name__}")
    text = output[output.rfind("</think>") + len("</think>") :] if "</think>" in output else output
    short = len(text) <= WHOLE
    text = text[-TAIL:]
    if rule == ExtractionRule.HASH:
        return _hash(text) or Found(None, "none")
    boxes, cut = _boxed(text)
    if boxes:
        return Found(_joined(text, boxes) if rule == ExtractionRule.ANSWER else boxes[-1].text, "boxed")
    # A box that was begun and not finished is an output that was cut off: nothing else may stand in for it.
    if rule == ExtractionRule.BOXED or cut:
        return Found(None, "none")
    if found := _hash(text) or _anchor(text):
        return found
    if rule == ExtractionRule.ANSWER and short:
        return _whole(text)
    if rule == ExtractionRule.LAST_NUMBER and (numbers := _NUMBER.findall(text)):
        return Found(numbers[-1], "lastnum")
    return Found(None, "none")


def read_gold(gold: str) -> str:
    """The answer in a reference: its box, what follows ``####``, what it announces, or all of it."""
    return extract(gold, ExtractionRule.ANSWER).text or gold.strip() if len(gold) <= WHOLE else _long_gold(gold)


def _long_gold(gold: str) -> str:
    found = extract(gold, ExtractionRule.FINAL)
    return found.text if found.text is not None else gold.strip()


_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?")
_OPENER = re.compile(r"(?:boxed|fbox)\s{0,8}\{")
_TOKEN_BOX = re.compile(r"boxed\s{1,8}([^\s${}\\]{1,64})")


class _Box(NamedTuple):
    start: int
    stop: int
    text: str


def _boxed(text: str) -> tuple[list[_Box], bool]:
    """The balanced boxes that lie in no other, and whether one was begun and none was finished."""
    stack: list[tuple[int, int]] = []  # for every open brace: where its box begins and its content, or (-1, -1)
    found: list[_Box] = []
    begun = False
    after = 0
    for mark in _MARK.finditer(text):
        i = mark.start()
        if i < after:
            continue
        kind = mark.group()
        if kind == "{":
            stack.append((-1, -1))
        elif kind == "}":
            start, content = stack.pop() if stack else (-1, -1)
            if start >= 0:
                while found and found[-1].start > start:
                    found.pop()
                found.append(_Box(start, i + 1, text[content:i].strip()))
        elif len(kind) > 2:
            at = mark.end() - len(kind.lstrip("\\"))
            if m := _OPENER.match(text, at):
                stack.append((i, m.end()))
                after, begun = m.end(), True
            elif m := _TOKEN_BOX.match(text, at):
                found.append(_Box(i, m.end(), m.group(1).rstrip(".,;:")))
    return found, begun and not found


#: What the search for boxes stops at; a backslash takes the character behind it along. Text that was escaped twice has
#: two before a box.
_MARK = re.compile(r"\\{1,2}(?:boxed|fbox)|\\.|[{}]", re.DOTALL)
_BETWEEN = re.compile(r"(?:[\s$,;~.]|\\(?:quad|qquad|[,;: ()\[\]])|\\text(?=\{)|[{}]|and\b|or\b){0,40}")


def _joined(text: str, boxes: list[_Box]) -> str:
    """The last box, with those right before it that only a comma or an "and" parts from it."""
    first = len(boxes) - 1
    while first:
        between = text[boxes[first - 1].stop : boxes[first].start]
        if len(between) > 40 or not _BETWEEN.fullmatch(between) or not re.search("[,;]|and|or", between):
            break
        first -= 1
    return ", ".join(box.text for box in boxes[first:])


def _hash(text: str) -> Found | None:
    at = text.rfind("####")
    if at < 0:
        return None
    line = text[at + 4 :].split("\n", 1)[0].strip()
    return Found(line, "hash") if line else None


_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_ANNOUNCED = re.compile(r"answers?(?:\*\*)?(?: (?:is|are)|:| =|(?:\*\*)?:)(?:\*\*)?(?![a-z])")
_ASIDE = ("i hope it is correct", "i hope this is correct", "i hope it's correct")
_CLAUSE = re.compile(r",? (?:which|because|since)\b")
_SENTENCE = re.compile(r"[.!?](?=\s)")
_CLOSERS = {"$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}


def _anchor(text: str) -> Found | None:
    """What the last announcement announces: a formula, or the rest of the sentence."""
    lowered = text.translate(_LOWER)
    end = -1
    for m in _ANNOUNCED.finditer(lowered):
        end = m.end()
    if end < 0:
        return None
    rest = text[end:].lstrip(" \t\r\n:*").removeprefix("is ").lstrip()
    for opener, closer in _CLOSERS.items():
        if rest.startswith(opener):
            close = rest.find(closer, len(opener))
            # `$5` that never closes is money.
            if close > 0 and not rest[len(opener) : close].isspace() and "\n\n" not in rest[:close]:
                after = rest[close + len(closer) :].lstrip()
                percent = "%" if after.startswith(("%", "\\%")) else ""
                return _something(rest[len(opener) : close] + percent)
            break
    line = rest.split("\n", 1)[0]
    aside = min((k for a in _ASIDE if (k := line.translate(_LOWER).find(a)) >= 0), default=len(line))
    line = line[:aside]
    if stop := _SENTENCE.search(line):
        line = line[: stop.start()]
    line = line.strip(" \t\r*").rstrip(".")
    # The answer is 5, which is odd. The answer is: the largest n is 34.
    if clause := _CLAUSE.search(line):
        line = line[: clause.start()]
    if (at := line.rfind(" is ")) > 0 and not re.search(r"[0-9]", line[:at]):
        line = line[at + 4 :]
    return _something(line)


def _something(text: str) -> Found | None:
    text = text.strip()
    return Found(text, "anchor") if text else None


def _whole(text: str) -> Found:
    text = text.strip()
    formulas = _formulas(text)
    if len(formulas) == 1:
        start, stop, inner = formulas[0]
        before, after = text[:start].strip(" .:*"), text[stop:].strip(" .:*")
        # Words before the only formula introduce it. A word or two behind it may be its unit.
        if inner.strip() and not re.search(r"\d", before + after) and (before or len(after.split()) > 3):
            counted = after == "%" or is_word_unit(after.split(), bare=False)
            return Found(f"{inner} \\text{{{after}}}".strip() if counted else inner.strip(), "formula")
    return Found(text, "whole") if text else Found(None, "none")


def _formulas(text: str) -> list[tuple[int, int, str]]:
    """Spans of ``$…$``, ``$$…$$``, ``\\(…\\)`` and ``\\[…\\]``, from left to right."""
    out, i, missing = [], 0, set()
    while i < len(text):
        for opener, closer in _CLOSERS.items():
            if opener not in missing and text.startswith(opener, i):
                close = text.find(closer, i + len(opener))
                if close < 0:
                    missing.add(opener)
                    continue
                out.append((i, close + len(closer), text[i + len(opener) : close]))
                i = close + len(closer)
                break
        else:
            i += 2 if text[i] == "\\" else 1
    return out
