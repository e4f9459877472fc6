"""Whatever bytes a parser is given, it returns or raises its typed error, with a message that can be printed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import PIECES, damaged, examples, retyped, text
from simulator import PROTOCOL, SEVERAL

from cask_eval.bundle import form
from cask_eval.bundle.contents import index_of
from cask_eval.bundle.errors import BundleError
from cask_eval.canonical import canonical, loads
from cask_eval.decide.model import AnalysisDocument
from cask_eval.errors import ProtocolError, RecordError, SplitError
from cask_eval.jsonl import split
from cask_eval.ledger.log import audit, line_of
from cask_eval.protocol import load, yaml
from cask_eval.records import store as records
from cask_eval.splits import store as splits
from cask_eval.workspace import Workspace

NOISE = st.binary(max_size=300) | st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=60).map(b"".join)


def only(error: type[Exception], run: Callable, *args: object) -> object:
    """What `run` returns; None after the one error that it may raise."""
    try:
        return run(*args)
    except error as raised:
        assert str(raised)
        return None


def protocol(data: bytes) -> None:
    found = only(ProtocolError, lambda: load.check(yaml.parse(data), "p.yaml"))
    if found:
        assert canonical(found.document())


@given(NOISE)
@examples(300)
def test_protocols_from_noise(data):
    protocol(data)


@given(st.data())
@examples(300)
def test_protocols_from_damage(data):
    protocol(data.draw(damaged(data.draw(st.sampled_from([PROTOCOL, SEVERAL])).encode())))


DOCUMENT = yaml.parse(PROTOCOL.encode()).value


@given(retyped(DOCUMENT))
@examples(300)
def test_protocols_from_values(value):
    """JSON is YAML, but for what only JSON's writer lets pass."""
    protocol(text(value))


@given(NOISE | retyped(DOCUMENT).map(text))
@examples(300)
def test_what_json_reads_it_can_write(data):
    value = only(ValueError, loads, data)
    if value is not None:
        assert loads(canonical(value)) == value


@given(NOISE)
@examples(300)
def test_lines_from_noise(data):
    found = split(data)
    assert not any(b"\n" in line for line in found.lines)
    for line in [*found.lines, found.torn]:
        only(RecordError, records.parse, line, "here")
    events, faults = audit(found.lines)
    assert not events and len(faults) >= len(found.lines)


@pytest.fixture(scope="module")
def files(honest) -> dict[str, bytes]:
    space = Workspace(honest)
    return {
        "ledger": space.ledger.read_bytes(),
        "records": b"".join(space.records("sim", "heldout").read_bytes().splitlines(keepends=True)[:3]),
        "manifest": (honest / "splits/sim-dev.json").read_bytes(),
        "analysis": space.analysis("sim").read_bytes(),
    }


def ledger(data: bytes) -> None:
    lines = split(data).lines
    events, faults = audit(lines)
    assert len(events) + len(faults) >= len(lines)
    if not faults:
        assert [line_of(e) for e in events] == lines
    for fault in faults:
        assert fault.startswith("line ")


@given(st.data())
@examples(150)
def test_ledgers_from_damage(files, data):
    ledger(data.draw(damaged(files["ledger"])))


@given(st.data())
@examples(150)
def test_ledgers_from_values(files, data):
    lines = files["ledger"].splitlines()
    i = data.draw(st.integers(0, len(lines) - 1))
    lines[i] = text(data.draw(retyped(json.loads(lines[i]))))
    ledger(b"\n".join(lines) + b"\n")


def record(line: bytes) -> None:
    found = only(RecordError, records.parse, line, "here")
    if found:
        assert records.parse(records.line_of(found), "again") == found


@given(st.data())
@examples(300)
def test_records_from_damage(files, data):
    for line in split(data.draw(damaged(files["records"]))).lines:
        record(line)


@given(st.data())
@examples(300)
def test_records_from_values(files, data):
    record(text(data.draw(retyped(json.loads(files["records"].splitlines()[0])))))


@given(st.data())
@examples(150)
def test_manifests(files, tmp_path_factory, data):
    whole = files["manifest"]
    path = tmp_path_factory.getbasetemp() / "manifest.json"
    path.write_bytes(data.draw(NOISE | damaged(whole) | retyped(json.loads(whole)).map(text)))
    found = only(SplitError, splits.read, path)
    if found:
        assert found.digest() and found.root()


@given(st.data())
@examples(300)
def test_analyses(files, data):
    whole = files["analysis"]
    given_ = data.draw(NOISE | damaged(whole) | retyped(json.loads(whole)).map(text))
    value = only(ValueError, loads, given_)
    only(ValueError, AnalysisDocument.model_validate, value)


INDEX = {"bundle": "cask-eval/bundle/1", "study": "sim", "head": "sha256:" + "0" * 64,
         "files": {"prereg/ledger.jsonl": "sha256:" + "1" * 64, "README.txt": "sha256:" + "2" * 64}}  # fmt: skip


@given(NOISE | damaged(text(INDEX)) | retyped(INDEX).map(text))
@examples(300)
def test_indexes(data):
    only(BundleError, index_of, data, "here")


def zipped() -> bytes:
    out, members = b"", []
    for name, data in (("bundle.json", b"{}"), ("a/b.txt", b"abc" * 10), ("a/c", b"")):
        members.append(form.Member(name, len(data), 0, len(out)))
        out += members[-1].local() + data
    return out + form.end(members, len(out))


@given(NOISE.map(lambda noise: noise + form.end([], len(noise))) | damaged(zipped()))
@examples(1000)
def test_zips(data):
    members = only(BundleError, form.read, io.BytesIO(data), "here")
    if members:
        assert sum(m.size for m in members) < len(data) and members[0].offset == 0
        for m in members:
            only(BundleError, lambda m=m: b"".join(form.blocks(io.BytesIO(data), m, "here")))
