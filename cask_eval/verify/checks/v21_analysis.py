from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from cask_eval.verify.check import Note, Skip, check
from cask_eval.verify.evidence import Evidence

_DECIMAL = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")
TOLERANCE = 1e-6


@check("V21", "decision follows from the records", "analysis", "document")
def v21(e: Evidence) -> Iterator[str]:
    """The analysis is done again from the records: counts, outcomes, branch and decision must be equal, computed
    numbers equal to the sixth digit; the ledger commits to the document that is there."""
    assert e.analysis and e.document
    if e.document_digest != e.analysis.digest:
        yield "analysis.json is not the document that the ledger commits to"
    if (e.analysis.branch, e.analysis.decision) != (e.document.branch, e.document.decision):
        yield f"the ledger says branch {e.analysis.branch}, analysis.json says {e.document.branch}"
    if e.derived is None:
        parts = ("registration", "protocol", "select", "heldout_manifest", "heldout")
        yield Skip(next(e.why(name) for name in parts if getattr(e, name) is None))
        return
    if isinstance(e.derived, str):
        yield e.derived
        return
    if (e.analysis.branch, e.analysis.decision) != (e.derived.branch, e.derived.decision):
        yield f"the ledger says branch {e.analysis.branch}, the records give {e.derived.branch}"
    yield from differences(e.document.model_dump(mode="json"), e.derived.model_dump(mode="json"))
    yield Note(f"branch {e.derived.branch}: {e.derived.decision}")


def differences(stated: Any, derived: Any, where: str = "") -> Iterator[str]:
    """Where two documents differ by more than rounding."""
    if isinstance(stated, dict) and isinstance(derived, dict) and stated.keys() == derived.keys():
        for key in stated:
            yield from differences(stated[key], derived[key], f"{where}.{key}" if where else key)
    elif isinstance(stated, list) and isinstance(derived, list) and len(stated) == len(derived):
        for i, (a, b) in enumerate(zip(stated, derived, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif stated != derived and not _close(stated, derived):
        yield f"{where} is {_show(stated)}, the records give {_show(derived)}"


def _close(a: Any, b: Any) -> bool:
    if not (isinstance(a, str) and isinstance(b, str) and _DECIMAL.fullmatch(a) and _DECIMAL.fullmatch(b)):
        return False
    return math.isclose(float(a), float(b), rel_tol=TOLERANCE, abs_tol=1e-12)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
