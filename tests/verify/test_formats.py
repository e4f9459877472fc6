"""A verdict as JUnit XML, Markdown and an in-toto statement, and the command that writes them."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from simulator import STUDY, Forger, read_lines

from cask_eval.cli import cli
from cask_eval.errors import StateError
from cask_eval.verify import formats
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.run import judge, verify
from cask_eval.workspace import Workspace


def broken(root):
    """A study whose protocol file says something else, with signs that mean something to every format."""
    forger = Forger(root)
    forger.protocol_file += b"\n# ]]> <b>&amp; | `x` \x07\n"
    forger.write()
    return root


def test_junit_counts_what_it_lists(honest):
    suite = ElementTree.fromstring(formats.junit(verify(honest, STUDY)))
    cases = suite.findall("testcase")
    assert int(suite.get("tests")) == len(cases) == 27
    assert suite.get("failures") == "0" == suite.get("errors")
    skipped = [c.get("name") for c in cases if c.find("skipped") is not None]
    assert skipped == ["V05 not back-dated", "level evidence level L2"]
    enough = ElementTree.fromstring(formats.junit(verify(honest, STUDY, require="L0")))
    assert enough.get("skipped") == "1"


def test_junit_names_the_failure(root):
    suite = ElementTree.fromstring(formats.junit(verify(broken(root), STUDY)))
    failed = [c for c in suite.findall("testcase") if c.find("failure") is not None]
    assert {c.get("name").split()[0] for c in failed} >= {"V01"} and int(suite.get("failures")) == len(failed)
    assert "is not the file that was registered" in failed[0].find("failure").text


def test_markdown_escapes(root):
    page = formats.markdown(verify(broken(root), STUDY))
    rows = [line for line in page.splitlines() if line.startswith("| V")]
    assert len(rows) == 25 and all(row.count("|") == 5 for row in rows)
    assert "**FAIL**" in page and "What this does not prove:" in page


def test_the_statement_holds_what_was_found(honest):
    e = Evidence.load(Workspace(honest), STUDY)
    made = formats.statement(e, judge(e))
    assert made["_type"] == formats.STATEMENT and made["predicateType"] == formats.PREDICATE
    assert {tuple(s["digest"]) for s in made["subject"]} == {("sha256",)} and len(made["subject"]) == 2
    predicate = json.loads(json.dumps(made))["predicate"]
    assert predicate["result"] == {"branch": e.document.branch, "decision": e.document.decision}
    assert predicate["label"] == "confirmatory" and len(predicate["comparisons"]) == 4
    head = next(c for c in predicate["configuration"] if c["name"] == "ledger head")
    assert "sha256:" + head["digest"]["sha256"] == read_lines(Workspace(honest).ledger)[-1]["hash"]
    assert predicate["verification"]["level"] == "L0" and predicate["verification"]["not_checked"] == ["V05"]


def test_what_does_not_hold_is_not_stated(root):
    e = Evidence.load(Workspace(broken(root)), STUDY)
    with pytest.raises(StateError, match="FAILED V01"):
        formats.statement(e, judge(e))


def test_the_command_writes_them(honest, tmp_path):
    files = {name: tmp_path / f"v.{name}" for name in ("junit", "md", "statement")}
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    result = CliRunner().invoke(cli, ["-C", str(honest), "verify", STUDY, *options], standalone_mode=False)
    assert result.return_value == 3, result.exception
    ElementTree.fromstring(files["junit"].read_text())
    outcome = "confirmatory, branch A: adopt the candidate"
    assert files["md"].read_text().startswith(f"# {STUDY}: {outcome}; nothing found wrong")
    assert json.loads(files["statement"].read_text())["predicate"]["study"] == STUDY
