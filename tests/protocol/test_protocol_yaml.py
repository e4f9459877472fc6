"""The strict YAML reader: every loophole is an error that names line, field and remedy."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.errors import ProtocolError
from cask_eval.protocol import yaml
from cask_eval.protocol.yaml import MAX_DEPTH, dotted, parse

# (document, [fragments of each expected message, in order])
FAULTS = {
    "duplicate": ("a: 1\nb: 2\na: 3\n", ["p.yaml:3: a: appears twice, first at line 1"]),
    "nested duplicate": ("x:\n  - {k: 1,\n     k: 2}\n", ["p.yaml:3: x[0].k: appears twice, first at line 2"]),
    "anchor": ("a: 1\nb: &x 2\n", ["p.yaml:2: b: &x is an anchor"]),
    "anchor on a section": ("b: &x\n  c: 1\n", ["p.yaml:1: b: &x is an anchor"]),
    "alias": ("a: &x 1\nb: *x\n", ["p.yaml:1: a: &x", "p.yaml:2: b: *x is an alias"]),
    "tag": ("a: 1\nb: !!str 2\n", ["p.yaml:2: b: has the tag tag:yaml.org,2002:str"]),
    "own tag": ("a: !thing {b: 1}\n", ["p.yaml:1: a: has the tag !thing"]),
    "tag on quoted text": ('a: !!int "3"\n', ["p.yaml:1: a: has the tag"]),
    "merge key": ("a: {b: 1}\nc:\n  <<: {d: 2}\n", ["p.yaml:3: c: << is a merge key"]),
    "anchored key": ("a: 1\n&k b: 2\n", ["p.yaml:2: b: has an anchor"]),
    "list as key": ("? [a]\n: 1\n", ["p.yaml:1: document: has a key that is no plain word"]),
    "two documents": ("a: 1\n---\nb: 2\n", ["p.yaml:2: document: a second document"]),
    "version directive": ("%YAML 1.1\n---\na: 1\n", ["document: has a % directive"]),
    "float": ("a: 1\nalpha: 0.05\n", ["p.yaml:2: alpha: 0.05 is an unquoted decimal", 'write "0.05"']),
    "exponent": ("a: 1e-3\n", ["p.yaml:1: a: 1e-3", 'write "0.001"']),
    "dot first": ("a: .5\n", ["p.yaml:1: a: .5", 'write "0.5"']),
    "huge exponent": ("a: 1e999999999\n", ["p.yaml:1: a: 1e9", 'write "0.05"']),
    "infinity": ("a: -.inf\n", ["p.yaml:1: a: -.inf", 'write "0.05"']),
    "not a number": ("a: [1, .nan]\n", ["p.yaml:1: a[1]: .nan"]),
    "leading zero": ("a: 010\n", ["p.yaml:1: a: 010 is not a plain whole number"]),
    "octal": ("a: 0o17\n", ["p.yaml:1: a: 0o17"]),
    "hexadecimal": ("a: 0x1F\n", ["p.yaml:1: a: 0x1F"]),
    "plus": ("a: +1\n", ["p.yaml:1: a: +1"]),
    "beyond 2**53": ("a: 9007199254740992\n", ["p.yaml:1: a: 9007199254740992 is beyond"]),
    "endless integer": (f"a: {'9' * 5000}\n", ["p.yaml:1: a: 9999"]),
    "unclosed": ("a: [1, 2\nb: 3\n", ["not YAML"]),
    "tab": ("a:\n\tb: 1\n", ["p.yaml:2: not YAML"]),
    "control character": ("a: 1\nb: \x07\n", ["p.yaml:2: contains a control character"]),
    "empty": ("", ["p.yaml:1: the file is empty"]),
    "only comments": ("# nothing\n", ["p.yaml:1: the file is empty"]),
    "half a character": ('a: 1\nb: "\\ud83d"\n', ["p.yaml:2: b: holds half of a"]),
    "half a character in a name": ('"\\ud83d": 1\n', ["p.yaml:1: document: a name holds half of a"]),
    "several at once": ("a: 0.5\nb: 010\na: 1\n", ["p.yaml:1: a:", "p.yaml:2: b:", "p.yaml:3: a: appears twice"]),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_faults_name_line_and_field(case, newline):
    text, expected = FAULTS[case]
    with pytest.raises(ProtocolError) as caught:
        parse(text.replace("\n", newline).encode(), "p.yaml")
    message = "\n".join(caught.value.problems)
    at = -1
    for fragment in expected:
        assert fragment in message
        assert message.index(fragment) >= at
        at = message.index(fragment)


def test_not_utf8_names_the_line():
    with pytest.raises(ProtocolError, match=r"p\.yaml:2: byte 0xff is not UTF-8"):
        parse(b"a: 1\nb: \xff\n", "p.yaml")


def test_utf16_is_refused():
    with pytest.raises(ProtocolError, match=r"p\.yaml:1: byte 0xff is not UTF-8"):
        parse("a: 1\n".encode("utf-16"), "p.yaml")


def test_byte_order_mark_is_tolerated():
    assert parse(b"\xef\xbb\xbfa: 1\n") == parse(b"a: 1\n")


def test_size_limit(monkeypatch):
    assert yaml.MAX_BYTES == 1_000_000
    monkeypatch.setattr(yaml, "MAX_BYTES", 20)
    at_limit = b"a: 1\n#".ljust(20, b"x")
    assert parse(at_limit).value == {"a": 1}
    with pytest.raises(ProtocolError, match="21 bytes, but a protocol has at most 20"):
        parse(at_limit + b"x")


@pytest.mark.parametrize("open_, close", [("[", "]"), ("{a: ", "}")])
def test_depth_limit(open_, close):
    def nest(depth):
        return (open_ * depth + "1" + close * depth).encode()

    parse(nest(MAX_DEPTH))
    with pytest.raises(ProtocolError, match=f"deeper than {MAX_DEPTH} levels"):
        parse(nest(MAX_DEPTH + 1))
    with pytest.raises(ProtocolError, match=f"deeper than {MAX_DEPTH} levels"):
        parse(nest(5_000))


def test_core_schema():
    text = """
    n: ~
    e:
    t: true
    i: -12
    z: 0
    # In YAML 1.1 these were a boolean, a sexagesimal number, a date and an integer with separators.
    y: yes
    s: 1:30
    d: 2026-01-01
    u: 1_000
    v: 1.2.3
    q: "0.05"
    p: '010'
    b: |
      two
      lines
    l: [a, "1", 1]
    """
    assert parse(text.encode()).value == {
        "n": None, "e": None, "t": True, "i": -12, "z": 0, "y": "yes", "s": "1:30", "d": "2026-01-01", "u": "1_000",
        "v": "1.2.3", "q": "0.05", "p": "010", "b": "two\nlines\n", "l": ["a", "1", 1],
    }  # fmt: skip


def test_lines_of_fields_and_items():
    parsed = parse(b"a: 1\nb:\n  - c: 2\n    d: 3\n  - e\n")
    lines = {dotted(path): line for path, line in parsed.lines.items()}
    assert lines == {"a": 1, "b": 2, "b[0]": 3, "b[0].c": 3, "b[0].d": 4, "b[1]": 5}
    assert parsed.line(("b", 0, "absent", "too")) == 3


def test_crlf_gives_the_same_values_and_lines():
    text = 'a: "x\n\n  y"\nb: |\n  one\n  two\nc: 3\n'
    assert parse(text.replace("\n", "\r\n").encode()) == parse(text.encode())


WORDS = st.text("abcdefghij_", min_size=1, max_size=6)
# Beyond U+FFFF, json.dumps escapes in pairs, which YAML does not have.
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_json_is_read_as_json_reads_it(value):
    """JSON is YAML 1.2; json.dumps escapes what YAML would not take raw."""
    assert parse(json.dumps(value).encode()).value == json.loads(json.dumps(value))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.text("ab:-[]{}#&*!|>'\"%@`\n\t ,?.0", max_size=40).map(str.encode))
def test_any_bytes_parse_or_are_a_protocol_error(data):
    try:
        parse(data)
    except ProtocolError as error:
        assert all(line.startswith("protocol.yaml") for line in error.problems)
        assert error.problems
