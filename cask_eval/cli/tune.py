"""cask-eval tune"""

from __future__ import annotations

import click

from cask_eval.cli.common import (
    command_line,
    device_options,
    json_option,
    print_json,
    quiet,
    study_argument,
    watch,
    workspace,
)
from cask_eval.workspace import Workspace


@click.command("tune")
@study_argument
@device_options
@json_option
@click.pass_context
def command(ctx: click.Context, study: str | None, device: str, slots: int, as_json: bool) -> None:
    """Run the dev split of STUDY (default: the one that is registered), match each arm's budget to the baseline's
    mean cache, and freeze what the registered rule chooses."""
    space = workspace(ctx)
    event, chosen = choose(space, study, device, slots)
    if as_json:
        print_json(event.model_dump(mode="json"))
        return
    for cell, config in chosen.chosen.items():
        arm = chosen.arms[cell]["candidate"]
        click.echo(f"{cell}: {config}, budget {arm.schedule.budget}")
    click.echo(f"next: {command_line(space, f'confirm {event.study} --split heldout')}")


def choose(space: Workspace, study: str | None, device: str, slots: int):
    """(ledger event, Select payload)."""
    quiet()
    from cask_eval.ledger.events import Select
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import pick
    from cask_eval.runner.steps import tune

    name = pick(Ledger(space.ledger).events(), study, {"registered"})
    with watch(f"tune {name}") as progress:
        event = tune(space, name, device, slots, progress)
    return event, Select.model_validate(event.payload)
