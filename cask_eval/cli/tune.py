"""cask-eval tune"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import click

from cask_eval.cli.common import (
    command_line,
    device_options,
    json_option,
    locked_protocol,
    nobody_survived,
    place,
    print_json,
    quiet,
    ray_option,
    say,
    study_argument,
    watch,
    workspace,
)
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.ledger.events import Select
    from cask_eval.runner.place import Place


@click.command("tune")
@study_argument
@ray_option
@device_options
@json_option
@click.pass_context
def command(
    ctx: click.Context, study: str | None, ray: str | None, device: str, slots: int | None, as_json: bool
) -> None:
    """Run the dev split of STUDY (default: the one that is registered), match each arm's budget to the baseline's
    mean cache, and freeze what the registered rules choose."""
    space = workspace(ctx)
    event, chosen = choose(space, study, place(device, slots, ray))
    if as_json:
        print_json(event.model_dump(mode="json"))
        return
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState

    show(chosen)
    if not chosen.survivors:
        registered = StudyState.of(Ledger(space.ledger).events(), event.study).register[1]
        say(nobody_survived(locked_protocol(registered)))
    click.echo(f"next: {command_line(space, f'confirm {event.study} --split heldout')}")


def show(chosen: Select) -> None:
    """What was frozen, one line per comparison, after one line per candidate where there are several."""
    several = len(chosen.gains) > 1
    for name, gain in chosen.gains.items() if several or not chosen.survivors else ():
        shown = float(Fraction(gain))
        shown = f"{shown:+.4g}" if chosen.rule.startswith("max_mean_endpoint") else f"{100 * shown:+.1f} points"
        click.echo(f"{name}: dev gain {shown}, {'confirmed' if name in chosen.survivors else 'screened out'}")
    for name in chosen.survivors:
        for cell, configs in chosen.chosen.items():
            label = f"{name} {cell}" if several else cell
            click.echo(f"{label}: {configs[name]}, budget {chosen.arms[cell][name].schedule.budget}")


def choose(space: Workspace, study: str | None, where: Place):
    """(ledger event, Select payload)."""
    quiet()
    from cask_eval.ledger.events import Select
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import pick
    from cask_eval.runner.steps import tune

    name = pick(Ledger(space.ledger).events(), study, {"registered"})
    with watch(f"tune {name}") as progress:
        event = tune(space, name, where, progress)
    return event, Select.model_validate(event.payload)
