"""The analysis as a step of a study: from the closed records to the document, committed to in the ledger."""

from __future__ import annotations

import json

from cask_eval import jsonl
from cask_eval.canonical import digest
from cask_eval.decide.analysis import analyse
from cask_eval.decide.model import AnalysisDocument
from cask_eval.errors import DriftError
from cask_eval.ledger.events import Analysis
from cask_eval.ledger.log import Ledger
from cask_eval.ledger.state import StudyState, guard
from cask_eval.protocol.model import Protocol
from cask_eval.records.store import RecordStore
from cask_eval.splits.store import read
from cask_eval.workspace import Workspace


def derive(space: Workspace, name: str) -> AnalysisDocument:
    """Analyse a closed study and write analysis.json. A second analysis must equal the first, unless an amendment lies
    between them; the file is written again, so that a lost one can be restored. Raises DriftError when records or
    result differ from the ledger's."""
    ledger = Ledger(space.ledger)
    events = ledger.events()
    state = StudyState.of(events, name)
    event, registered = state.register
    store = RecordStore(space.records(name, "heldout"))
    if store.commit(space.root) != state.close[1].records:
        raise DriftError(f"{store.path} differs from what was closed; restore it before analysing")
    ids = [item.id for item in read(space.resolve(registered.splits["heldout"].path)).items]
    document = analyse(
        Protocol.model_validate(registered.protocol),
        event.hash,
        state.select[1],
        store.read(),
        ids,
        label=state.label,
    )
    content = document.model_dump(mode="json")
    if state.analysis and state.analysis[1].digest != digest(content):
        raise DriftError(
            f"the analysis of {name} now has digest {digest(content)}, the ledger holds "
            f"{state.analysis[1].digest}; something was changed after the first analysis"
        )
    path = space.analysis(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file first: when a crash comes between, the study is one that waits for its analysis.
    jsonl.replace(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    if state.analysis is None:
        payload = Analysis(digest=digest(content), branch=document.branch, decision=document.decision)
        ledger.append(name, "analysis", payload, allow=guard(name, "analysis"))
    return document
