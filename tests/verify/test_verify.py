from __future__ import annotations

import json
import subprocess
import sys

import pytest
from simulator import NOBODY, PROTOCOL, STUDY, Forger, build, line, read_lines

from cask_eval.records.model import Record
from cask_eval.records.store import canonical_lines, evidence_of, line_of
from cask_eval.verify.check import Note, Skip, check
from cask_eval.verify.checks import CHECKS
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.rerun import judged
from cask_eval.verify.run import Outcome, judge, verify
from cask_eval.workspace import Workspace


def test_an_honest_study_passes_but_is_not_anchored(honest):
    verdict = verify(honest, STUDY)
    assert [r.status for r in verdict.results if r.claimed] == ["pass"] * (len(CHECKS) - 1), verdict.lines
    assert verdict.exit_code == 3 and "evidence level L0, required L2" in verdict.summary
    assert verify(honest, STUDY, require="L0").exit_code == 0
    assert [r.id for r in verdict.results] == [f"V{i:02}" for i in range(1, 26)]
    assert [(r.id, r.status) for r in verdict.results if not r.claimed] == [("V05", "not_checked")]
    assert len(verdict.lines) == 25 and not any("\n" in text for text in verdict.lines)


def test_an_honest_study_of_several_candidates_passes(honest_several):
    verdict = verify(honest_several, STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines
    document = Evidence.load(Workspace(honest_several), STUDY).document
    assert [s.candidate for s in document.screening if s.survived] == ["strong", "fair"]
    assert document.family == 8 and {c.candidate for c in document.cells} == {"strong", "fair"}


def test_a_study_that_nobody_survived_passes(tmp_path):
    """Baseline and controls were run, nothing was compared, and the branch is that for nothing found."""
    build(tmp_path / "ws", NOBODY)
    verdict = verify(tmp_path / "ws", STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines
    evidence = Evidence.load(Workspace(tmp_path / "ws"), STUDY)
    assert evidence.document.branch == "C" and evidence.document.cells == [] and evidence.document.family == 8
    assert {r.arm for r in evidence.heldout.records} == {"baseline", "random"}
    assert {r.arm for r in evidence.dev.records} == {"baseline", "near", "strong", "fair"}


def test_the_verdict_is_json_and_says_what_it_does_not_prove(honest):
    out = json.loads(json.dumps(verify(honest, STUDY).to_json()))
    assert out["exit_code"] == 3 and len(out["checks"]) == 25 and len(out["does_not_prove"]) >= 4
    assert all(c["details"] for c in out["checks"] if c["status"] == "not_checked")


def test_a_head_from_an_earlier_look_is_accepted(honest):
    for event in read_lines(Workspace(honest).ledger)[3:]:
        assert not verify(honest, STUDY, head=event["hash"]).failed


def test_checks_are_pure(honest):
    evidence = Evidence.load(Workspace(honest), STUDY)
    assert judge(evidence) == judge(evidence)


def test_crlf_checkouts_verify(root):
    """git may turn line ends on Windows; nothing but the line ends changes."""
    for path in root.rglob("*"):
        if path.suffix in (".jsonl", ".json", ".yaml"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    verdict = verify(root, STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines


@pytest.mark.parametrize("events", [1, 2, 3, 4, 5, 6, 7])
def test_an_unfinished_study_is_incomplete_and_not_wrong(root, events):
    space = Workspace(root)
    lines = read_lines(space.ledger)
    space.ledger.write_bytes(b"".join(line(e) + b"\n" for e in lines[:events]))
    space.analysis(STUDY).unlink()
    if events <= 5:
        path = space.records(STUDY, "heldout")
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:100]))
    verdict = verify(root, STUDY, require="L0")
    assert not verdict.failed, [r.line for r in verdict.failed]
    assert verdict.exit_code == 3


@pytest.mark.parametrize(
    "gone",
    ["prereg/sim.yaml", "splits/sim-dev.json", "splits/sim-heldout.json", "reports/sim/dev.jsonl",
     "reports/sim/heldout.jsonl", "reports/sim/analysis.json"],
)  # fmt: skip
def test_missing_files_leave_the_verdict_incomplete(root, gone):
    (root / gone).unlink()
    verdict = verify(root, STUDY, require="L0")
    assert verdict.exit_code == 3 and any(gone in r.line for r in verdict.undone), verdict.lines


def test_a_study_that_was_never_registered_fails(honest):
    verdict = verify(honest, "another", require="L0")
    assert verdict.exit_code == 1 and [r.id for r in verdict.failed] == ["V02"]


def test_an_empty_workspace_fails(tmp_path):
    assert verify(tmp_path, STUDY).exit_code == 1


def test_other_studies_in_the_ledger_do_not_disturb(root):
    forger = Forger(root)
    forger.events.append({**forger.events[0], "study": "later", "time": "2027-02-01T00:00:00Z"})
    forger.resign().write()
    assert verify(root, STUDY, require="L0").exit_code == 0


def test_a_split_that_another_study_consumed_meanwhile_is_mentioned(root):
    """Registered before the other one looked: nothing that came of it can have shaped this protocol."""
    forger = Forger(root)
    other = json.loads(json.dumps(forger.events[:4]))
    for e in other:
        e.update(study="other", time=forger.events[2]["time"])
    forger.events[3:3] = other
    forger.chain()
    forger.write()
    verdict = verify(root, STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines
    result = next(r for r in verdict.results if r.id == "V24")
    assert any("'other' consumed the same problems later" in d for d in result.details)


def test_an_exploratory_study_may_use_problems_again(tmp_path):
    build(tmp_path / "ws", exploratory=True)
    forger = Forger(tmp_path / "ws")
    assert forger.analysis["label"] == "exploratory"
    earlier = json.loads(json.dumps(forger.events[:4]))
    for e in earlier:
        e.update(study="earlier", time=forger.events[0]["time"])
    forger.events[:0] = earlier
    forger.resign().write()
    verdict = verify(tmp_path / "ws", STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines


def test_an_amended_study_passes_and_is_exploratory(honest_amended):
    verdict = verify(honest_amended, STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines
    said = next(r for r in verdict.results if r.id == "V02").details
    assert [d.split(" (")[1].split(")")[0] for d in said] == ["candidates", "test.veto.alpha"]
    evidence = Evidence.load(Workspace(honest_amended), STUDY)
    assert evidence.label == evidence.document.label == "exploratory"
    labels = [a.payload["branch"] for a in evidence.of_kind("analysis")]
    assert len(labels) == 2 and len(evidence.superseded) == 1


def test_an_amendment_before_the_run_stays_confirmatory(tmp_path):
    build(tmp_path / "ws", early=PROTOCOL.replace('"0.5", "1.0"', '"1.0"'))
    verdict = verify(tmp_path / "ws", STUDY, require="L0")
    assert verdict.exit_code == 0, verdict.lines
    assert Evidence.load(Workspace(tmp_path / "ws"), STUDY).document.label == "confirmatory"


def test_an_anchored_study_reaches_its_level(honest_anchored, roots):
    verdict = verify(honest_anchored, STUDY, roots=roots)
    assert (verdict.exit_code, verdict.level) == (0, "L2"), verdict.lines
    # Nobody here has heard of that authority: nothing is wrong, and nothing is claimed.
    unknown = verify(honest_anchored, STUDY)
    assert (unknown.exit_code, unknown.level) == (3, "L0") and not unknown.failed


def test_levels_grow_with_who_vouches(honest):
    head = read_lines(Workspace(honest).ledger)[-1]["hash"]
    assert verify(honest, STUDY, head=head, require="L1").exit_code == 0
    same = verify(honest, STUDY, require="L3", again=lambda e: judged(60, 240, [], [], []))
    assert (same.level, same.exit_code) == ("L3", 0)
    swapped = verify(honest, STUDY, require="L3", again=lambda e: judged(60, 240, [], [], ["models"]))
    assert (swapped.level, swapped.exit_code) == ("L0", 3) and not swapped.failed
    few = verify(honest, STUDY, require="L3", again=lambda e: judged(5, 240, [], ["platform"], []))
    assert (few.level, few.exit_code) == ("L0", 3) and not few.failed
    other = verify(honest, STUDY, head=head, again=lambda e: judged(60, 240, ["one/b24/random/x/0 differs"], [], []))
    assert (other.level, other.exit_code) == ("L0", 1)
    abroad = verify(honest, STUDY, again=lambda e: judged(60, 240, ["one/b24/random/x/0 differs"], ["packages"], []))
    assert abroad.exit_code == 3 and [r.id for r in abroad.undone] == ["RUN"]


def test_what_other_code_made_of_the_trials_is_said_first(honest, capsys):
    from cask_eval.cli.verify import show

    differ = [f"one/b24/random/x/{i} came out otherwise" for i in range(3)]
    verdict = verify(honest, STUDY, require="L0", again=lambda e: judged(5, 240, differ, [], ["methods"]))
    assert verdict.summary.endswith(
        "incomplete (trials executed again show nothing: methods is not what was registered)"
    )
    show(verdict)
    said = capsys.readouterr().out
    assert "RUN  not checked  trials executed again: methods is not what was registered (+4 more)" in said
    assert all(line in said for line in [*differ, "so nothing follows from this: 2 of 5 trials drawn from 240"])


def test_a_verdict_says_that_nothing_was_decided_where_every_comparison_is_void(honest):
    document = Evidence.load(Workspace(honest), STUDY).document
    assert "void" not in str(Outcome.of(document))
    void = document.model_copy(update={"void_cells": len(document.cells)})
    assert str(Outcome.of(void)).endswith(" (every comparison is void: nothing was decided)")


def test_require_names_a_level(honest):
    with pytest.raises(ValueError, match="L7"):
        verify(honest, STUDY, require="L7")  # type: ignore[arg-type]


def test_details_are_short_and_printable(honest):
    @check("V99", "noise")
    def noise(e):
        yield "red \x1b[31m and \u202e reversed"
        yield from ("x" * 10_000 for _ in range(100))

    result = noise.run(Evidence.load(Workspace(honest), STUDY))
    assert result.status == "fail" and len(result.details) == 13
    assert all(text.isprintable() and len(text) <= 400 for text in result.details)
    assert result.details[0] == r"red \x1b[31m and \u202e reversed"


def test_a_check_that_breaks_has_failed(honest):
    @check("V99", "broken")
    def broken(e):
        yield Note("so far so good")
        raise KeyError("no such thing")

    result = broken.run(Evidence.load(Workspace(honest), STUDY))
    assert result.status == "fail" and "KeyError" in result.details[0]


def test_a_skip_is_no_pass(honest):
    @check("V99", "half")
    def half(e):
        yield Skip("the other half")

    assert half.run(Evidence.load(Workspace(honest), STUDY)).status == "not_checked"


def test_fast_canonical_lines_are_canonical(honest):
    value = read_lines(Workspace(honest).records(STUDY, "heldout"))[0]
    odd = '"measures":{},', 'x","measures":{},"y'
    for text in ("plain", *odd, "é ü 漢 😀 \u2028", '\x00\x1f\x7f\b\t"\\/', "<&>", "1" * 40):
        for measures in ({}, {"core": "1" * 20, "a": "0.5"}, {"\U0001f600": "1", "\uffee": "2"}):
            record = Record.model_validate({**value, "output": text, "measures": measures})
            assert canonical_lines(record) == (line_of(record), evidence_of(record))
    record = Record.model_validate({**value, "output": "\ud800"})
    for form in (line_of, canonical_lines):
        with pytest.raises(ValueError):
            form(record)


def test_measures_are_not_part_of_the_evidence(root):
    """Their last digits depend on the batch, so they are read, and committed to by nobody."""
    forger = Forger(root)
    forger.heldout[0]["measures"] = {"overlap": "0.25"}
    forger.write()
    assert verify(root, STUDY, require="L0").exit_code == 0


def test_verify_needs_no_torch_and_no_network(honest):
    code = f"""
import sys, socket
for name in ("torch", "transformers", "tokenizers", "safetensors"):
    sys.modules[name] = None
def refuse(*args, **kwargs):
    raise AssertionError("network")
socket.socket.connect = socket.create_connection = refuse
from cask_eval.verify.run import verify
sys.exit(verify({str(honest)!r}, {STUDY!r}, require="L0").exit_code)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
