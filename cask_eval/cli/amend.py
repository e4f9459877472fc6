"""cask-eval amend"""

from __future__ import annotations

from pathlib import Path

import click

from cask_eval.cli.common import command_line, device_option, json_option, print_json, quiet, resolve_device, say
from cask_eval.cli.register import examined
from cask_eval.cli.report import write_report
from cask_eval.errors import CaskError


@click.command("amend")
@click.argument("protocol", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--reason", required=True, metavar="TEXT", help="Why; at least ten characters. Readers will see it.")
@device_option
@json_option
def command(protocol: Path, reason: str, device: str, as_json: bool) -> None:
    """Put PROTOCOL, edited, in the place of the registered one of the same study, for everybody to see.

    Before the held-out split is consumed everything is locked anew and the dev split has to be run again. Afterwards
    only hypothesis, expectations, matched_cache, exclude, test and branches may change, and the study is exploratory
    for good.
    """
    quiet()
    from cask_eval.decide.derive import derive
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState, next_command
    from cask_eval.runner.steps import amend

    if not 10 <= len(reason.strip()) <= 4000:
        raise CaskError(
            f"--reason {reason[:60]!r}: {len(reason.strip())} characters; say why in 10 to 4,000, readers will ask"
        )
    _, space, _, warnings = examined(protocol, amends=True)
    for line in warnings:
        say(f"warning: {line}")
    event = amend(space, protocol, reason.strip(), resolve_device(device), warnings)
    state = StudyState.of(Ledger(space.ledger).events(), event.study)
    if state.name == "closed":
        # What is there says confirmatory.
        derive(space, event.study)
        write_report(space, event.study)
        state = StudyState.of(Ledger(space.ledger).events(), event.study)
    if as_json:
        print_json(event.model_dump(mode="json"))
        return
    for change in event.payload["changes"]:
        click.echo(f"{change['field']}: {change['before'] or 'nothing'} → {change['after'] or 'nothing'}")
    click.echo(f"amended {event.study}: {event.hash}")
    if state.label == "exploratory":
        click.echo("the held-out split was consumed before, so this study is exploratory from now on")
    elif state.superseded:
        click.echo("the dev split has to be run again; its earlier records are kept")
    click.echo(f"next: {command_line(space, next_command(state))}")
