"""A verdict for machines and pages: JUnit XML for CI, Markdown for people, an in-toto statement for supply chains."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from cask_eval.errors import StateError
from cask_eval.ledger.levels import LEVELS
from cask_eval.verify.evidence import Evidence
from cask_eval.verify.run import NOT_PROVEN, Verdict

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/eval-result/v0.1"


def junit(verdict: Verdict) -> str:
    """One test case a check; one that was not done is skipped, and so is the level where it is too low."""
    outcome = ["the outcome was not derived again"] if verdict.outcome is None else [str(verdict.outcome)]
    cases = [(r.id, r.title, r.status, r.details) for r in verdict.results]
    low = "not_checked" if verdict.level < verdict.require else "pass"
    cases.append(("outcome", "label, branch and decision", "pass" if verdict.outcome else "not_checked", outcome))
    cases.append(("level", f"evidence level {verdict.require}", low, [f"it is {verdict.level}"]))
    count = {status: str(sum(c[2] == status for c in cases)) for status in ("fail", "not_checked")}
    suite = ElementTree.Element(
        "testsuite",
        name=f"cask-eval verify {verdict.study}",
        tests=str(len(cases)),
        failures=count["fail"],
        errors="0",
        skipped=count["not_checked"],
    )
    for id, title, status, details in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=f"cask_eval.{verdict.study}", name=f"{id} {title}")
        text = _xml("\n".join(details))
        if status == "fail":
            ElementTree.SubElement(case, "failure", message=text.partition("\n")[0]).text = text
        elif status == "not_checked":
            ElementTree.SubElement(case, "skipped", message=text.partition("\n")[0])
        elif text:
            ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(verdict: Verdict) -> str:
    """A page: the summary, a table of the checks, and what is not proven."""
    word = {"pass": "ok", "fail": "**FAIL**", "not_checked": "not checked"}
    rows = [
        f"| {r.id} | {word[r.status]} | {_cell(r.title)} | {'<br>'.join(_cell(d) for d in r.details)} |"
        for r in verdict.results
    ]
    return "\n".join(
        [
            f"# {_cell(verdict.summary)}",
            "",
            f"Evidence {verdict.level}: {LEVELS[verdict.level]}.",
            "",
            "| Check | Result | What | Details |",
            "|---|---|---|---|",
            *rows,
            "",
            *NOT_PROVEN.splitlines()[:1],
            "",
            *NOT_PROVEN.splitlines()[1:],
            "",
        ]
    )


def statement(evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    """An in-toto Statement (v1) with a predicate of type eval-result: the models, their weights by digest, and what was
    found about them under which protocol. It is not signed; whoever signs it vouches for having verified. Raises
    StateError for a study without an analysis, or with one that does not hold or could not be derived again."""
    register, document = evidence.register, evidence.document
    if register is None or document is None or evidence.state.analysis is None:
        raise StateError(f"{evidence.study} has no analysis that could be stated; finish it first")
    if verdict.outcome is None:
        raise StateError(f"{verdict.summary}; a result that was not derived again is not stated")
    models = [(f"{m.name}/{name}", digest) for m in register.models for name, digest in sorted(m.files.items())]
    files = [
        ("analysis.json", evidence.document_digest),
        ("protocol", register.protocol_digest),
        ("dev split", register.splits["dev"].merkle_root),
        ("held-out split", register.splits["heldout"].merkle_root),
        ("ledger head", evidence.events[-1].hash),
    ]
    return {
        "_type": STATEMENT,
        "subject": [_resource(name, digest) for name, digest in models],
        "predicateType": PREDICATE,
        "predicate": {
            "evaluator": {"id": "cask-eval", "toolkit": register.environment.toolkit},
            "study": evidence.study,
            "hypothesis": document.hypothesis,
            "label": verdict.outcome.label,
            "result": {"branch": verdict.outcome.branch, "decision": verdict.outcome.decision},
            "comparisons": [
                {
                    name: getattr(cell, name)
                    for name in ("candidate", "cell", "outcome", "difference", "p_registered", "p_adjusted", "n")
                }
                for cell in document.cells
            ],
            "configuration": [_resource(name, digest) for name, digest in files],
            "methods": [_resource(p.name, p.digest) for p in register.methods],
            "registered": evidence.state.register[0].time,
            "analysed": evidence.state.analysis[0].time,
            "verification": {
                "level": verdict.level,
                "meaning": LEVELS[verdict.level],
                "passed": [r.id for r in verdict.results if r.status == "pass"],
                "not_checked": [r.id for r in verdict.results if r.status == "not_checked"],
            },
        },
    }


def _resource(name: str, digest: str | None) -> dict[str, Any]:
    assert digest
    algorithm, _, value = digest.partition(":")
    return {"name": name, "digest": {algorithm: value}}


def _xml(text: str) -> str:
    """What XML 1.0 can hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|~$#@<>&])", lambda m: f"&#{ord(m[1])};", " ".join(text.split()))
