"""cask-eval analyze"""

from __future__ import annotations

import json

import click

from cask_eval.cli.common import json_option, locked_protocol, print_json, study_argument, workspace
from cask_eval.workspace import Workspace


@click.command("analyze")
@study_argument
@json_option
@click.pass_context
def command(ctx: click.Context, study: str | None, as_json: bool) -> None:
    """Derive the decision of STUDY from its closed records, and commit to it in the ledger."""
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import pick

    space = workspace(ctx)
    name = pick(Ledger(space.ledger).events(), study, {"closed"})
    document = derive(space, name)
    if as_json:
        print_json(document.model_dump(mode="json"))
    else:
        click.echo(f"branch {document.branch}: {document.decision}")


def derive(space: Workspace, name: str):
    """The analysis document, written beside the records. A second analysis must equal the first."""
    from cask_eval.canonical import digest
    from cask_eval.decide.analysis import analyse
    from cask_eval.errors import DriftError
    from cask_eval.ledger.events import Analysis
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState, guard
    from cask_eval.records.store import RecordStore
    from cask_eval.splits.store import read

    ledger = Ledger(space.ledger)
    events = ledger.events()
    state = StudyState.of(events, name)
    event, registered = state.register
    amended = any(e.event == "amend" and e.study == name for e in events)
    protocol = locked_protocol(registered)
    store = RecordStore(space.records(name, "heldout"))
    if store.commit(space.root) != state.close[1].records:
        raise DriftError(f"{store.path} differs from what was closed; restore it before analysing")
    ids = [item.id for item in read(space.resolve(registered.splits["heldout"].path)).items]
    document = analyse(protocol, event.hash, state.select[1], store.read(), ids,
                       label="exploratory" if amended else "confirmatory")
    content = document.model_dump(mode="json")
    if state.analysis is None:
        payload = Analysis(digest=digest(content), branch=document.branch, decision=document.decision)
        ledger.append(name, "analysis", payload, allow=guard(name, "analysis"))
    elif state.analysis[1].digest != digest(content):
        raise DriftError(f"the analysis of {name} now has digest {digest(content)}, the ledger holds "
                         f"{state.analysis[1].digest}; something was changed after the first analysis")
    path = space.analysis(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    return document
