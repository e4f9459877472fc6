"""cask-eval analyze"""

from __future__ import annotations

import click

from cask_eval.cli.common import check_gate, gate_option, gated, json_option, print_json, study_argument, workspace


@click.command("analyze")
@study_argument
@gate_option
@json_option
@click.pass_context
def command(ctx: click.Context, study: str | None, gate: str | None, as_json: bool) -> int:
    """Derive the decision of STUDY from its closed records, and commit to it in the ledger."""
    from cask_eval.decide.derive import derive
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import pick

    space = workspace(ctx)
    name = pick(Ledger(space.ledger).events(), study, {"closed"})
    check_gate(gate, space, name)
    document = derive(space, name)
    if as_json:
        print_json(document.model_dump(mode="json"))
    else:
        click.echo(f"branch {document.branch}: {document.decision}")
    return gated(gate, document.branch)
