"""A finished study of which anything was changed: what is committed to cannot change without a check that fails, and
nothing that an author signs makes the verifier stumble."""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mutations import damaged, examples, retyped, text
from simulator import STUDY, Forger, read_lines

from cask_eval import jsonl
from cask_eval.canonical import canonical, loads
from cask_eval.errors import CaskError
from cask_eval.records.store import evidence_of, line_of, parse
from cask_eval.verify.run import verify
from cask_eval.workspace import Workspace

LEDGER, PROTOCOL, ANALYSIS = "prereg/ledger.jsonl", "prereg/sim.yaml", "reports/sim/analysis.json"
SPLITS = ["splits/sim-dev.json", "splits/sim-heldout.json"]
RECORDS = ["reports/sim/dev.jsonl", "reports/sim/heldout.jsonl"]
#: The first session of the held-out run left so many records; within a session their order is free.
SESSION = 100


def meaning(name: str, data: bytes) -> object:
    """What is committed to of a file. Two files that mean the same may differ in line ends, in white space and the
    order of fields where a digest is over the document, in measures and in the order of a session's records."""
    if name == PROTOCOL:
        return data.replace(b"\r\n", b"\n")
    if name.endswith(".json"):
        try:
            return canonical(loads(data))
        except ValueError:
            return data
    if name.endswith(".gz"):
        try:
            return meaning(name.removesuffix(".gz"), gzip.decompress(data))
        except (OSError, EOFError, zlib.error):
            return data
    lines, torn, _ = jsonl.split(data)
    if name == LEDGER:
        return lines, torn
    leaves = [leaf(line) for line in lines]
    first = SESSION if name == RECORDS[1] else len(leaves)  # the dev records are those of one session
    return sorted(leaves[:first]), sorted(leaves[first:]), torn


def leaf(line: bytes) -> bytes:
    try:
        record = parse(line, "")
        return evidence_of(record) if line_of(record) == line else line
    except (CaskError, ValueError):
        return line


@pytest.fixture(scope="module")
def head(honest) -> str:
    return read_lines(honest / LEDGER)[-1]["hash"]


@pytest.fixture(scope="module")
def work(honest, tmp_path_factory) -> Path:
    """A copy in which one file at a time is changed and put back."""
    return Path(shutil.copytree(honest, tmp_path_factory.mktemp("mutated") / "ws"))


@pytest.fixture(scope="module")
def packed(work, tmp_path_factory) -> Path:
    """The same with packed records."""
    root = Path(shutil.copytree(work, tmp_path_factory.mktemp("packed") / "ws"))
    for name in RECORDS:
        jsonl.pack(root / name)
    return root


def code_with(root: Path, name: str, data: bytes, head: str) -> int:
    path = root / name
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        return verify(root, STUDY, head=head, require="L0").exit_code
    except CaskError as error:
        return error.exit_code
    finally:
        path.write_bytes(before)


def judged(root: Path, name: str, data: bytes, head: str) -> None:
    same = meaning(name, data) == meaning(name, (root / name).read_bytes())
    assert code_with(root, name, data, head) == (0 if same else 1)


def test_the_study_is_honest(work, packed, head):
    for root in (work, packed):
        assert verify(root, STUDY, head=head, require="L0").exit_code == 0


NAMES = st.sampled_from([LEDGER, PROTOCOL, ANALYSIS, *SPLITS, *RECORDS])


def bytes_changed(work, head, data):
    name = data.draw(NAMES)
    judged(work, name, data.draw(damaged((work / name).read_bytes())), head)


def values_changed(work, head, data):
    name = data.draw(st.sampled_from([LEDGER, ANALYSIS, *SPLITS, *RECORDS]))
    whole = (work / name).read_bytes()
    if name.endswith(".json"):
        changed = text(data.draw(retyped(json.loads(whole))))
    else:
        lines = whole.splitlines(keepends=True)
        i = data.draw(st.integers(0, len(lines) - 1))
        lines[i] = text(data.draw(retyped(json.loads(lines[i])))) + b"\n"
        changed = b"".join(lines)
    judged(work, name, changed, head)


def packed_changed(packed, head, data):
    name = data.draw(st.sampled_from(RECORDS)) + ".gz"
    judged(packed, name, data.draw(damaged((packed / name).read_bytes())), head)


def signed_changed(work, data):
    """The author changes a value of an event, and makes the chain, or every digest that can be made, again."""
    forger = Forger(work)
    i = data.draw(st.integers(0, len(forger.events) - 1))
    forger.events[i]["payload"] = data.draw(retyped(forger.events[i]["payload"]))
    try:
        forger.resign() if data.draw(st.booleans()) else forger.chain()
        ledger = text_lines(forger.events)
    except (ValueError, LookupError, TypeError, AttributeError, CaskError, ArithmeticError):
        assume(False)  # the forger, not the verifier, could not make sense of it
    assert code_with(work, LEDGER, ledger, "sha256:" + "0" * 64) == 1  # the head is another in any case


def records_signed(work, data):
    """The author changes a record, and commits to it."""
    forger = Forger(work)
    rows = data.draw(st.sampled_from([forger.dev, forger.heldout]))
    i = data.draw(st.integers(0, len(rows) - 1))
    rows[i] = data.draw(retyped(rows[i]))
    try:
        forger.resign()
        put = {LEDGER: text_lines(forger.events), RECORDS[0]: text_lines(forger.dev),
               RECORDS[1]: text_lines(forger.heldout), ANALYSIS: text(forger.analysis)}  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError, CaskError, ArithmeticError):
        assume(False)
    before = {name: (work / name).read_bytes() for name in put}
    try:
        for name, content in put.items():
            (work / name).write_bytes(content)
        assert verify(work, STUDY, require="L0").exit_code in (0, 1)  # who signs everything can pass: V04's word
    finally:
        for name, content in before.items():
            (work / name).write_bytes(content)


def text_lines(rows: list[dict]) -> bytes:
    return b"".join(text(row) + b"\n" for row in rows)


@given(st.data())
@examples(25)
def test_bytes(work, head, data):
    bytes_changed(work, head, data)


@given(st.data())
@examples(25)
def test_values(work, head, data):
    values_changed(work, head, data)


@given(st.data())
@examples(15)
def test_packed(packed, head, data):
    packed_changed(packed, head, data)


@given(st.data())
@examples(15)
def test_signed_ledgers(work, data):
    signed_changed(work, data)


@given(st.data())
@examples(10)
def test_signed_records(work, data):
    records_signed(work, data)


@pytest.mark.slow
@given(st.data())
@examples(400)
def test_many(work, packed, head, data):
    match data.draw(st.sampled_from(["bytes", "values", "packed", "signed", "records"])):
        case "bytes":
            bytes_changed(work, head, data)
        case "values":
            values_changed(work, head, data)
        case "packed":
            packed_changed(packed, head, data)
        case "signed":
            signed_changed(work, data)
        case "records":
            records_signed(work, data)


def test_damage_that_is_none(work, head):
    """The changes that `meaning` lets pass do pass."""
    for name in (LEDGER, PROTOCOL, ANALYSIS, *SPLITS, *RECORDS):
        data = (work / name).read_bytes()
        assert code_with(work, name, data.replace(b"\n", b"\r\n"), head) == 0
    data = (work / ANALYSIS).read_bytes()
    assert code_with(work, ANALYSIS, data + b"\n\n", head) == 0
    assert code_with(work, PROTOCOL, (work / PROTOCOL).read_bytes() + b"\n", head) == 1
    rows = (work / RECORDS[1]).read_bytes().splitlines(keepends=True)
    assert code_with(work, RECORDS[1], b"".join([rows[1], rows[0], *rows[2:]]), head) == 0
    assert code_with(work, RECORDS[1], b"".join([rows[-1], *rows[1:-1], rows[0]]), head) == 1
    rows = (work / RECORDS[0]).read_bytes().splitlines(keepends=True)
    ends_swapped = b"".join([rows[-1], *rows[1:-1], rows[0]])  # all of one session
    assert len(rows) > SESSION
    judged(work, RECORDS[0], ends_swapped, head)
    assert code_with(work, RECORDS[0], ends_swapped, head) == 0
    assert Workspace(work).ledger.is_file()
