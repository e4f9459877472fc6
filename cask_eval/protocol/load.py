"""From a protocol file to a typed protocol, or to a list of everything that is wrong with it."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cask_eval.canonical import digest, digest_bytes
from cask_eval.errors import ProtocolError
from cask_eval.protocol import yaml
from cask_eval.protocol.keys import configs
from cask_eval.protocol.model import Protocol

_KINDS = {
    "string": 'must be text; put it in quotes, such as "0.05"',
    "int": "must be a whole number without quotes",
    "bool": "must be true or false, without quotes",
    "list": "must be a list; write [a, b] or one `- item` per line",
    "dict": "must hold named fields; write {name: value}",
    "model": "must hold named fields; write {name: value}",
}

# What a pattern means, for those who do not read regular expressions.
_PATTERNS = {
    "^[a-z0-9][a-z0-9._-]{0,62}$": "use lower-case letters, digits, '.', '_' and '-', at most 63 in all, "
    "beginning with a letter or digit",
    "^[a-z][a-z0-9_]*$": "use lower-case letters, digits and '_', beginning with a letter",
    r"^(>=|<=|==|!=|>|<) ?\d{1,6}$": 'write a comparison with a count, such as ">=1"',
}


@dataclass(frozen=True)
class Loaded:
    """A valid protocol and the digests that lock it: `raw_digest` of the file's bytes, `digest` of its meaning."""

    protocol: Protocol
    path: Path
    raw_digest: str
    digest: str
    parsed: yaml.Parsed = field(repr=False, compare=False)

    def at(self, field: str) -> str:
        """``file:line: field``, for messages about a protocol that is valid in form. Entries of a list go by their
        names, as in ``models[chain-s].calibration``, or by number."""
        path: tuple[str | int, ...] = ()
        for name, entry in re.findall(r"([^.\[\]]+)(?:\[([^\]]*)\])?", field):
            path += (name,)
            listed = self._listed(path) if entry else []
            path += tuple(i for i, one in enumerate(listed) if entry in (one.get("name"), str(i)))[:1]
        return f"{self.path}:{self.parsed.line(path)}: {field}"

    def _listed(self, path: tuple[str | int, ...]) -> list[dict]:
        found: Any = self.parsed.value
        for step in path:
            fits = isinstance(found, dict) if isinstance(step, str) else isinstance(found, list)
            found = (found.get(step) if isinstance(step, str) else found[step]) if fits else None
        return [one if isinstance(one, dict) else {} for one in found] if isinstance(found, list) else []


def load(path: str | Path) -> Loaded:
    """Read and check a protocol file. Raises ProtocolError with one ``file:line: field: …`` line per fault."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > yaml.MAX_BYTES:
            raise ProtocolError([f"{path}: {size} bytes, but a protocol has at most {yaml.MAX_BYTES}; shorten it"])
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ProtocolError([f"{path}: cannot be read ({reason}); `cask-eval init` writes an example"]) from None
    parsed = yaml.parse(data, str(path))
    protocol = check(parsed, str(path))
    return Loaded(protocol, path, digest_bytes(data), digest(protocol.document()), parsed)


def check(parsed: yaml.Parsed, name: str) -> Protocol:
    """The typed protocol of a parsed document. Raises ProtocolError."""
    if not isinstance(parsed.value, dict):
        raise ProtocolError([f"{name}:1: document: must hold named fields such as `study:`; see `cask-eval init`"])
    try:
        protocol = Protocol.model_validate(parsed.value)
    except ValidationError as error:
        raise ProtocolError(explain(error.errors(include_url=False), parsed, name)) from None
    for i, candidate in enumerate(protocol.candidates):
        path = ("candidate", "tune") if "candidate" in parsed.value else ("candidates", i, "tune")
        try:
            configs(candidate)
        except ProtocolError as error:
            at = f"{name}:{parsed.line(path)}: {yaml.dotted(path)}: "
            raise ProtocolError([at + problem for problem in error.problems]) from None
    return protocol


def explain(errors: Iterable[Any], parsed: yaml.Parsed, name: str, model: type[BaseModel] = Protocol) -> list[str]:
    """pydantic's errors as ``file:line: field: what is wrong (value …); remedy``, in the order of the file."""
    found: dict[tuple, list[dict]] = {}
    for error in errors:
        found.setdefault(_field(error, parsed), []).append(error)
    lines = []
    for path, group in found.items():
        what = _what(path, group, model)
        lines.append((parsed.line(path), f"{yaml.dotted(path)}: {what}"))
    return [f"{name}:{line}: {text}" for line, text in sorted(lines, key=lambda pair: pair[0])]


def _field(error: dict, parsed: yaml.Parsed) -> tuple:
    """The path of the field that an error is about. pydantic appends names of union members to a path; a check of
    a whole section names its field at the start of the message instead."""
    path = tuple(error["loc"])
    if error["type"] == "missing":
        return path
    while path and path not in parsed.lines:
        path = path[:-1]
    if error["type"] == "value_error":
        named = re.match(r"[a-z_]+(\.[a-z_]+|\[\])*", _message(error))
        steps = tuple(named[0].replace("[]", "").split(".")) if named else ()
        while steps:
            if (*path, *steps) in parsed.lines:
                return (*path, *steps)
            steps = steps[:-1]
    return path


def _what(path: tuple, group: list[dict], model: type[BaseModel]) -> str:
    """One sentence for all errors of one field."""
    error = group[0]
    kind, value = error["type"], error["input"]
    if len(group) > 1 and all(e["type"].endswith("_type") for e in group):
        return f"must be text, a whole number or true/false (value {_show(value)}); write one of these"
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        known = fields_at(path[:-1], model)
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"remove it or use one of {', '.join(known)}"
        return f"is no field of a protocol (value {_show(value)}); {remedy}"
    if kind == "value_error":
        return _without_prefix(_message(error), path) + ("" if isinstance(value, dict) else f" (value {_show(value)})")
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        near = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", expected), n=1)
        return f"must be {expected} (value {_show(value)})" + (f"; did you mean {near[0]!r}?" if near else "; use it")
    if kind == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return f"is not well formed (value {_show(value)}); {_PATTERNS.get(pattern, f'it must match {pattern}')}"
    if value is None and kind.endswith("_type"):
        return "is empty (value null); give a value or remove the field"
    if kind.endswith("_type") and (named := _KINDS.get(kind.removesuffix("_type"))):
        what, remedy = named.split("; ", 1) if "; " in named else (named, "correct it")
        return f"{what} (value {_show(value)}); {remedy}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]} (value {_show(value)}); correct the value"


def fields_at(path: Iterable[str | int], model: type[BaseModel] = Protocol) -> list[str]:
    """The names that the section at `path` may hold, in the order of the schema."""
    current: type[BaseModel] | None = model
    for step in path:
        # An index stays in the model that the list holds.
        if isinstance(step, str) and current is not None:
            info = current.model_fields.get(step)
            current = _model_in(info.annotation) if info else None
    return list(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside Optional, Annotated or list, if there is one."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((m for a in typing.get_args(annotation) if (m := _model_in(a))), None)


def _message(error: dict) -> str:
    return error["msg"].removeprefix("Value error, ")


def _without_prefix(message: str, path: tuple) -> str:
    """The message without the field's name, which the line already gives."""
    plain = ".".join(str(step) for step in path)
    for prefix in (f"{plain}: ", f"{plain}[].name: ", f"{plain} "):
        if message.startswith(prefix):
            return message[len(prefix) :]
    return message


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
