"""cask-eval tune"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import click

from cask_eval.cli.common import (
    amending,
    command_line,
    device_options,
    json_option,
    locked_protocol,
    nobody_survived,
    place,
    print_json,
    quiet,
    ray_option,
    rehearsed,
    say,
    study_argument,
    watch,
    workspace,
)
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.decide.model import ArmResult
    from cask_eval.ledger.events import Select
    from cask_eval.protocol.model import Protocol
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
    found = rehearsed(space, event.study)
    if as_json:
        print_json(event.model_dump(mode="json"))
        return
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState

    registered = StudyState.of(Ledger(space.ledger).events(), event.study).register[1]
    protocol = locked_protocol(registered)
    show(protocol, chosen, found.arms)
    if not chosen.survivors:
        say(nobody_survived(protocol))
    if found.warnings:
        say(
            "no warning stops `confirm`; to change the protocol while the held-out split is unspent, edit it, then "
            f"`{amending(space, registered)}`"
        )
    click.echo(f"next: {command_line(space, f'confirm {event.study} --split heldout')}")


def show(protocol: Protocol, chosen: Select, arms: dict[str, dict[str, ArmResult]]) -> None:
    """What was frozen, one line per arm and cell with its dev numbers, after one line per candidate where there are
    several."""
    several = len(chosen.gains) > 1
    for name, gain in chosen.gains.items() if several or not chosen.survivors else ():
        shown = float(Fraction(gain))
        shown = f"{shown:+.4g}" if chosen.rule.startswith("max_mean_endpoint") else f"{100 * shown:+.1f} points"
        click.echo(f"{name}: dev gain {shown}, {'confirmed' if name in chosen.survivors else 'screened out'}")
    tuned = {c.name for c in protocol.candidates if c.tune}
    for cell, row in arms.items():
        for arm, result in row.items():
            config = f" {chosen.chosen[cell][arm]}" if arm in tuned else ""
            click.echo(f"{cell} {arm}{config}: budget {result.budget}, on dev {_numbers(protocol, result)}")


def _numbers(protocol: Protocol, result: ArmResult) -> str:
    """What an arm did on the dev split, in a line."""
    if protocol.fidelity:
        done = f"{protocol.test.endpoint} {result.fidelity.get(protocol.test.endpoint, 'unknown')}"
    else:
        cut = f", {result.truncated} at the length cap" if result.truncated else ""
        done = f"{result.correct} of {result.trials} right{cut}"
    if not result.active:
        return f"{done}, no trial left an account of its cache"
    return f"{done}, {float(result.active):.0%} compressed, mean cache {float(result.mean_cache):.4g}"


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
