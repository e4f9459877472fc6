"""Strict YAML: the 1.2 core schema without its loopholes, and the line of every field.

The grammar is ruamel.yaml's; this file decides what may stand in a protocol. What two readers could read in two
ways (duplicate keys, anchors, tags, merge keys, floats, octal-looking integers) is an error, so that a file has one
meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from cask_eval.errors import ProtocolError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1

Path = tuple[str | int, ...]

_SURROGATE = re.compile("[\ud800-\udfff]")
_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Parsed:
    """A document as plain values. `lines` maps the path of every field and list item to its line, from 1."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest enclosing field that the file has."""
        path = tuple(path)
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def dotted(path: Path) -> str:
    """``("models", 0, "id")`` as ``models[0].id``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or "document"


def parse(data: bytes, name: str = "protocol.yaml") -> Parsed:
    """Parse one YAML document. `name` is the file name used in messages.

    Raises ProtocolError with one line per fault; a fault of the grammar ends the parse, others are collected.
    """
    if len(data) > MAX_BYTES:
        raise ProtocolError([f"{name}: {len(data)} bytes, but a protocol has at most {MAX_BYTES}; shorten it"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ProtocolError(
            [f"{name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"]
        ) from None
    reader = _Reader(name)
    try:
        value = reader.document(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position or 0) + 1
        raise ProtocolError([f"{name}:{line}: contains a control character; remove it"]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        where = f" ({error.context} at line {error.context_mark.line + 1})" if error.context_mark else ""
        raise ProtocolError(
            [*reader.problems, f"{name}:{line}: not YAML: {error.problem}{where}; correct the line"]
        ) from None
    except YAMLError as error:
        raise ProtocolError([*reader.problems, f"{name}: not YAML: {error}"]) from None
    if reader.problems:
        raise ProtocolError(reader.problems)
    return Parsed(value, reader.lines)


class _TooDeep(Exception):
    pass


class _Reader:
    """Builds plain values from the parser's events and notes every fault on the way."""

    def __init__(self, name: str):
        self.name = name
        self.problems: list[str] = []
        self.lines: dict[Path, int] = {}

    def fault(self, event: Any, path: Path, what: str) -> None:
        self.problems.append(f"{self.name}:{event.start_mark.line + 1}: {dotted(path)}: {what}")

    def document(self, text: str) -> Any:
        self.events = iter(YAML(typ="safe", pure=True).parse(text))
        value, documents = None, 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if event.version or event.tags:
                    self.fault(event, (), "has a % directive; remove it, protocols are YAML 1.2")
                if documents > 1:
                    self.fault(event, (), "a second document begins here; keep one document per file")
                    break
            elif isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent, AliasEvent)):
                try:
                    value = self.node(event, ())
                except _TooDeep:
                    break
        if not documents:
            self.problems.append(f"{self.name}:1: the file is empty; `cask-eval init` writes an example")
        return value

    def node(self, event: Any, path: Path) -> Any:
        if isinstance(event, AliasEvent):
            self.fault(event, path, f"*{event.anchor} is an alias; write the value out")
            return None
        if event.anchor:
            self.fault(event, path, f"&{event.anchor} is an anchor; remove it and write values out where they are used")
        if event.tag:
            self.fault(event, path, f"has the tag {event.tag}; remove it, types follow from the value")
        if isinstance(event, ScalarEvent):
            return self.scalar(event, path)
        if len(path) >= MAX_DEPTH:
            self.fault(event, path[:3], f"is nested deeper than {MAX_DEPTH} levels; flatten it")
            raise _TooDeep
        return self.mapping(path) if isinstance(event, MappingStartEvent) else self.sequence(path)

    def sequence(self, path: Path) -> list:
        out: list = []
        for event in self.events:
            if isinstance(event, SequenceEndEvent):
                break
            here = (*path, len(out))
            self.lines[here] = event.start_mark.line + 1
            out.append(self.node(event, here))
        return out

    def mapping(self, path: Path) -> dict:
        out: dict = {}
        for event in self.events:
            if isinstance(event, MappingEndEvent):
                break
            line = event.start_mark.line + 1
            key = self.key(event, path)
            here = (*path, key)
            if key in out:
                self.fault(event, here, f"appears twice, first at line {self.lines[here]}; keep one")
            else:
                self.lines[here] = line
            value = self.node(next(self.events), here)
            out.setdefault(key, value)
        return out

    def key(self, event: Any, path: Path) -> str:
        if not isinstance(event, ScalarEvent):
            self.fault(event, path, "has a key that is no plain word; field names are words")
            self.node(event, (*path, "?"))
            return "?"
        plain = event.implicit[0]
        if plain and event.value == "<<":
            self.fault(event, path, "<< is a merge key; write the fields out")
            return "<<"
        if event.anchor or event.tag:
            self.fault(event, (*path, event.value), "has an anchor or a tag on its name; remove it")
        if _SURROGATE.search(event.value):
            self.fault(event, path, "a name holds half of a \\u pair; write the character itself")
            return "?"
        return event.value

    def scalar(self, event: ScalarEvent, path: Path) -> Any:
        text = event.value
        if _SURROGATE.search(text):
            self.fault(event, path, "holds half of a \\u pair; write the character itself")
            return ""
        if not event.implicit[0]:
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            return self.integer(event, path)
        if _FLOAT.fullmatch(text):
            what = f"{text} is an unquoted decimal, which platforms may round differently"
            self.fault(event, path, f'{what}; write "{_plain(text)}", or a whole number where one is asked for')
            return text
        return text

    def integer(self, event: ScalarEvent, path: Path) -> int:
        text = event.value
        if not _DECIMAL.fullmatch(text):
            self.fault(event, path, f"{text} is not a plain whole number; write it without prefix, + or leading zeros")
            return 0
        if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            self.fault(event, path, f"{shown} is beyond ±{MAX_INTEGER}; use a smaller number or quote it")
            return 0
        return int(text)


def _plain(text: str) -> str:
    """The decimal as a protocol writes it, without an exponent; an example of one where that makes no sense."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return "0.05"
    return format(value, "f") if len(text) <= 20 and abs(value.adjusted()) <= 12 else "0.05"
