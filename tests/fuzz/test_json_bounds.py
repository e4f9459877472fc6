"""What the strict readers refuse before it costs anything, and what they must go on reading."""

from __future__ import annotations

import json

import pytest
from simulator import PROTOCOL

from cask_eval import jsonl
from cask_eval.canonical import MAX_OBJECTS, MAX_VALUES, canonical, loads
from cask_eval.errors import ProtocolError, RecordError
from cask_eval.ledger.log import MAX_FAULTS, audit
from cask_eval.protocol.keys import MAX_TRIALS, configs, expected_keys
from cask_eval.protocol.load import check
from cask_eval.protocol.model import Candidate
from cask_eval.protocol.yaml import parse
from cask_eval.records.store import parse as record
from cask_eval.verify.check import MAX_SAID
from cask_eval.verify.check import check as make


@pytest.mark.parametrize(
    "data",
    [b'"\xed\xa0\x80"', b'"\xff"', b'"\xc0\xaf"', b'"\xf4\x90\x80\x80"', '"a"'.encode("utf-16"), '"a"'.encode("utf-32"),
     '{"a":1}'.encode("utf-16-le"), b"\xef\xbb\xbf{}", "\ufeff{}", rb'"\ud800"', rb'{"\uDC00": 1}',
     rb'["\udc00\ud800"]', '"\ud800"', "9007199254740992", "-9007199254740992", "9" * 4300, "9" * 5000,
     "[" * 10**6, '{"a":' * 10**5],
)  # fmt: skip
def test_what_is_not_strict_json(data):
    with pytest.raises(ValueError):
        loads(data)


@pytest.mark.parametrize(
    "data, value",
    [(rb'"\ud83d\ude00"', "😀"), ('"😀"'.encode(), "😀"), (rb'"\\ud800"', r"\ud800"), (b"9007199254740991", 2**53 - 1),
     (b"-9007199254740991", 1 - 2**53), (b'"12345678901234567890"', "1" "2345678901234567890")],
)  # fmt: skip
def test_what_is(data, value):
    assert loads(data) == value and canonical(value)


def test_as_many_values_as_any_document_has_are_read():
    assert len(loads(json.dumps([1] * (MAX_VALUES - 2)))) == MAX_VALUES - 2
    assert len(loads(b"[" + b"{}," * (MAX_OBJECTS - 1) + b"{}]")) == MAX_OBJECTS
    for text in ("[" + "1," * MAX_VALUES + "1]", "[" + "{}," * MAX_OBJECTS + "{}]"):
        with pytest.raises(ValueError, match="more than"):
            loads(text)


def test_a_message_about_many_wrong_values_is_short():
    many = b",".join(b'"%d":0' % i for i in range(50_000))
    for line in (b'{"output_ids":[' + b'"x",' * 50_000 + b'"x"]}', b"{" + many + b"}"):
        with pytest.raises(RecordError, match=r"line: \d+ values are wrong") as caught:
            record(line, "here")
        assert len(str(caught.value)) < 100
    with pytest.raises(RecordError) as caught:
        record(b"[" + b"1," * 50_000 + b"1]", "here")
    assert len(str(caught.value)) < 200
    with pytest.raises(RecordError) as caught:
        record(b'{"%s":1}' % (b"a" * 10**6), "here")
    assert len(str(caught.value)) < 600


def test_a_last_line_that_no_study_writes_is_incomplete():
    bomb = b"[" + b"[]," * MAX_VALUES + b"0]"
    assert jsonl.split(b"{}\n" + bomb).torn == bomb


def test_too_many_lines(monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINES", 10)
    assert len(jsonl.split(b"{}\n" * 10).lines) == 10
    with pytest.raises(RecordError, match="more than 10 lines"):
        jsonl.split(b"{}\n" * 11)


def test_faults_of_a_ledger_are_bounded():
    events, faults = audit(b"" for _ in range(10**6))
    assert not events and len(faults) == MAX_FAULTS + 1 and "was not read" in faults[-1]


def test_findings_of_a_check_are_bounded():
    @make("V99", "endless")
    def endless(e):
        while True:
            yield "again"

    assert endless.run(None).status == "fail" and MAX_SAID >= 1000


def test_a_grid_without_end_is_refused():
    values = [f"0.{i}" for i in range(1, 100)]
    with pytest.raises(ProtocolError, match="are the most"):
        configs(Candidate(preset="alpha", tune={f"p{i}": values for i in range(100)}))
    protocol = check(parse(PROTOCOL.encode()), "p")
    with pytest.raises(ProtocolError, match="are the most"):
        expected_keys(protocol, [str(i) for i in range(MAX_TRIALS)], [])
    with pytest.raises(ProtocolError, match="budgets: 201 are listed"):
        check(parse(PROTOCOL.replace("[24, 32]", str(list(range(1, 202)))).encode()), "p")
