"""cask-eval grade."""

from __future__ import annotations

import json
import sys

import pytest

from cask_eval import cli
from cask_eval.cli.grade import RULES
from cask_eval.grading import VERSION, ExtractionRule


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*args: str, lines: list | None = None):
        if lines is not None:
            text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
            (tmp_path / "pairs.jsonl").write_text(text + "\n", encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["cask-eval", "grade", *args])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


PAIRS = [
    {"gold": r"\frac{1}{2}", "answer": "0.5"},
    {"gold": "5", "answer": r"so \boxed{500\%}", "id": "a"},
    {"gold": "3", "answer": "It has 3 parts. I cannot finish"},
    {"gold": "3", "answer": "the answer is 3", "rule": "boxed"},
]


def test_json_has_what_was_promised(run):
    code, out, _ = run("pairs.jsonl", "--json", "--workers", "1", lines=PAIRS)
    assert code == 0
    found = json.loads(out)
    assert (found["grader"], found["graded"], found["correct"], found["failed"]) == (VERSION, 4, 1, 0)
    assert [r["verdict"] for r in found["results"]] == [True, False, False, False]
    first = found["results"][0]
    assert (first["extracted"], first["engine"], first["reason"]) == ("0.5", "number", "equal")
    assert first["seconds"] >= 0 and first["gold"] == r"\frac{1}{2}"
    assert found["results"][1]["id"] == "a"
    assert found["results"][3]["extracted"] is None


def test_compare_says_where_math_verify_alone_differs(run):
    code, out, _ = run("pairs.jsonl", "--json", "--compare", "--workers", "1", lines=PAIRS[:3])
    assert code == 0
    assert [r["differs"] for r in json.loads(out)["results"]] == [False, True, True]


def test_whole_numbers_are_read_as_texts(run):
    code, out, _ = run("pairs.jsonl", "--json", "--workers", "1", lines=[{"gold": 18, "answer": 18}])
    assert code == 0 and json.loads(out)["results"][0]["verdict"] is True


def test_a_line_per_pair_for_people(run):
    code, out, err = run("pairs.jsonl", "--workers", "1", lines=PAIRS)
    assert code == 0 and len(out.splitlines()) == 4
    assert "right" in out and "boxed/" in out and "1 of 4 right" in err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "pairs.jsonl:1: is no JSON"),
        (["[1]"], "pairs.jsonl:1: is list"),
        ([{"gold": "1"}], "pairs.jsonl:1: answer is None"),
        ([{"gold": 1.5, "answer": "1"}], "pairs.jsonl:1: gold is 1.5"),
        ([{"gold": True, "answer": "1"}], "pairs.jsonl:1: gold is True"),
        ([PAIRS[0], {"gold": "1", "answer": "1", "rule": "x"}], "pairs.jsonl:2: rule is 'x'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(run, lines, message):
    code, out, err = run("pairs.jsonl", lines=lines)
    assert code == 2 and not out and message in err


def test_every_rule_of_the_grader_can_be_asked_for():
    assert list(RULES) == list(ExtractionRule)


def test_an_empty_file_has_nothing_to_grade(run):
    code, out, _ = run("pairs.jsonl", "--json", lines=[])
    assert code == 0 and json.loads(out)["graded"] == 0


def test_a_missing_file_is_named(run):
    code, _, err = run("no.jsonl")
    assert code == 2 and "no.jsonl" in err
