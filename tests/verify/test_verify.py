from __future__ import annotations

import json
import subprocess
import sys

import pytest
from simulator import NOBODY, STUDY, Forger, build, line, read_lines

from cask_eval.records.model import Record
from cask_eval.records.store import evidence_of, line_of
from cask_eval.splits.model import Manifest
from cask_eval.splits.store import write
from cask_eval.verify.check import Note, Skip, check
from cask_eval.verify.checks import CHECKS, OPEN
from cask_eval.verify.evidence import Evidence, canonical_lines
from cask_eval.verify.run import judge, verify
from cask_eval.workspace import Workspace


def test_an_honest_study_passes_but_is_not_anchored(honest):
    verdict = verify(honest, STUDY)
    assert [r.status for r in verdict.results if r.claimed] == ["pass"] * len(CHECKS), verdict.lines
    assert verdict.exit_code == 3 and "evidence level L0, required L2" in verdict.summary
    assert verify(honest, STUDY, require="L0").exit_code == 0
    assert [r.id for r in verdict.results] == [f"V{i:02}" for i in range(1, 26)]
    assert {r.id for r in verdict.results if not r.claimed} == set(OPEN)
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
    forger.events.append({**forger.events[0], "study": "later", "time": "2026-02-01T00:00:00Z"})
    forger.resign().write()
    assert verify(root, STUDY, require="L0").exit_code == 0


def test_a_split_that_another_study_consumed_before_is_mentioned(root):
    forger = Forger(root)
    earlier = [{**e, "study": "earlier", "time": forger.events[0]["time"]} for e in forger.events[:4]]
    for e in earlier:
        e["payload"] = json.loads(json.dumps(e["payload"]))
    forger.events[:0] = earlier
    forger.chain()
    forger.write()
    evidence = Evidence.load(Workspace(root), STUDY)
    result = next(c for c in CHECKS if c.id == "V07").run(evidence)
    assert any("'earlier' consumed the same held-out split before" in d for d in result.details)


@pytest.mark.parametrize("role, seen", [("heldout", "consumed 19 of these 20"), ("dev", "tuned on 19 of these 20")])
def test_a_split_that_another_study_ran_in_part_is_mentioned(root, role, seen):
    """Leaving out a problem gives another root, so the problems are compared."""
    forger = Forger(root)
    earlier = json.loads(json.dumps(forger.events[:4]))
    for e in earlier:
        e.update(study="earlier", time=forger.events[0]["time"])
    part = json.loads(json.dumps({**forger.manifests["heldout"], "name": "part"}))
    part["items"].pop()
    part = Manifest.model_validate(part)
    part = part.model_copy(update={"merkle_root": part.root()})
    write(root / "splits/part.json", part)
    splits = earlier[0]["payload"]["splits"]
    splits[role] = {"path": "splits/part.json", "digest": part.digest(), "merkle_root": part.merkle_root, "count": 19}
    if role == "dev":
        earlier = earlier[:2]
    forger.events[:0] = earlier
    forger.chain()
    forger.write()
    result = next(c for c in CHECKS if c.id == "V07").run(Evidence.load(Workspace(root), STUDY))
    assert any(f"study 'earlier' {seen} problems before" in d for d in result.details), result.details


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
    for text in ("plain", "é ü 漢 😀 \u2028", '\x00\x1f\x7f\b\t"\\/', "<&>", "1" * 40):
        for measures in ({}, {"core": "1" * 20, "a": "0.5"}, {"\U0001f600": "1", "\uffee": "2"}):
            record = Record.model_validate({**value, "output": text, "measures": measures})
            assert canonical_lines(record) == (line_of(record), evidence_of(record))
    for broken in ({"output": "\ud800"}, {"sample": 2**60}):
        record = Record.model_validate({**value, **broken})
        with pytest.raises(ValueError):
            line_of(record)
        with pytest.raises(ValueError):
            canonical_lines(record)


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
