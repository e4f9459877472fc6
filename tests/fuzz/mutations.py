"""Ways to damage a file, as hypothesis strategies."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def examples(count: int) -> settings:
    """So many, the same in every run: what a change did not break should not fail. To look for more, set
    `derandomize=False` and a larger count. A verification takes as long as it takes."""
    return settings(max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=SLOW)


#: What readers stumble over.
PIECES = [b"\0", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\\ud800",
          b"NaN", b"1e9", b"-0", b"0.5",
          b"9" * 20, b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"&a ", b"*a", b"!!x ", b"<<: ",
          b"---\n", b"? ", b"- ", b"|\n", b"%YAML 1.1\n", b"\t", b" ", b"#", b"'", b"\x1b[2J", "é".encode(),
          "\u2028".encode()]  # fmt: skip

VALUES: list[Any] = [None, True, False, 0, 1, -1, 2**31, 2**53 - 1, 2**53, 10**40, 0.5, float("nan"), float("inf"),
                     "", "x", "0", "1/3", "-1", "1e9", "NaN", "9" * 400, "sha256:" + "0" * 64,
                     "../../etc/passwd", "/dev/zero", "a\0b",
                     "a" * 5000, "\x1b[2J", "\u202e", "\ud800", "é", [], {}, [[]], [None], {"": 0}, {"a": {"b": []}},
                     [0] * 1000, list(range(50)), "one/b24", "baseline", "lambda=1.0@24", "embedded:../x"]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with one or a few changes: bits, cuts, copies, insertions, exchanged lines."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "byte", "insert", "cut", "truncate", "copy", "swap", "lines"])):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "byte" if at < len(data):
                data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
            case "insert":
                data = data[:at] + draw(st.sampled_from(PIECES)) + data[at:]
            case "cut":
                data = data[:at] + data[at + draw(st.integers(1, 200)) :]
            case "truncate":
                data = data[:at]
            case "copy":
                data = data[:at] + data[max(0, at - draw(st.integers(1, 200))) :]
            case "swap" if data.count(b"\n") > 1:
                lines = data.splitlines(keepends=True)
                i, j = (draw(st.integers(0, len(lines) - 1)) for _ in "ij")
                lines[i], lines[j] = lines[j], lines[i]
                data = b"".join(lines)
            case "lines" if data:
                lines = data.splitlines(keepends=True)
                i = draw(st.integers(0, len(lines) - 1))
                data = b"".join(lines[:i] + lines[i : i + 1] * draw(st.sampled_from([0, 2])) + lines[i + 1 :])
            case _:
                pass
    return data


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value inside a JSON value."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@st.composite
def retyped(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with something else at one or two places, or with a field more or less."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        known = list(places(value))
        if not known:
            return value
        *path, last = draw(st.sampled_from(known))
        at = value
        for step in path:
            at = at[step]
        match draw(st.sampled_from(["put", "put", "put", "near", "drop", "add", "twice"])):
            case "near" if isinstance(at[last], int):
                at[last] += draw(st.sampled_from([-1, 1, 2**40]))
            case "near" if isinstance(at[last], str):
                at[last] += draw(st.sampled_from(["0", " ", "\n", "é"]))
            case "drop":
                del at[last]
            case "add" if isinstance(at, dict):
                at[draw(st.sampled_from(["x", "", "__class__", "study"]))] = draw(st.sampled_from(VALUES))
            case "twice" if isinstance(at, list):
                at.append(copy.deepcopy(at[last]))
            case _:
                at[last] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return value


def text(value: Any) -> bytes:
    """The value as compact JSON, whatever it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
