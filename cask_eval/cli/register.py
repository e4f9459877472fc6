"""cask-eval register"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cask_eval.cli.common import command_line, device_options, json_option, print_json, quiet, say
from cask_eval.errors import ProtocolError
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.protocol.load import Loaded
    from cask_eval.splits.model import Manifest


@click.command("register")
@click.argument("protocol", type=click.Path(dir_okay=False, path_type=Path))
@device_options
@json_option
def command(protocol: Path, device: str, slots: int | None, as_json: bool) -> None:
    """Lock PROTOCOL: digests of the protocol, splits, models, methods and environment go into the ledger.

    Run it on the machine that will run the study: the environment is locked too.
    """
    event, power = lock(protocol, device)
    if as_json:
        print_json(event.model_dump(mode="json"))
    else:
        say(power)
        click.echo(f"registered {event.study}: {event.hash}")
        click.echo(f"protocol digest, which confirm will ask for: {event.payload['protocol_digest']}")
        click.echo(f"next: {command_line(Workspace.find(protocol.parent), f'tune {event.study}')}")


def lock(protocol: Path, device: str):
    """(ledger event, power line). Raises ProtocolError on lint errors; warnings are printed and recorded."""
    quiet()
    from cask_eval.decide.lint import describe_power
    from cask_eval.runner.steps import register

    loaded, workspace, manifest, warnings = examined(protocol)
    warnings += spent(workspace, loaded, manifest) if manifest else []
    for line in warnings:
        say(f"warning: {line}")
    event = register(workspace, protocol, device, warnings)
    return event, describe_power(loaded.protocol, len(manifest.items) if manifest else None)


def spent(space: Workspace, loaded: Loaded, heldout: Manifest) -> list[str]:
    """One line per split of the ledger that held-out problems were in before."""
    from cask_eval.ledger.lineage import manifests, shared
    from cask_eval.ledger.log import Ledger

    events = Ledger(space.ledger).events()
    return [
        f"task.heldout: {found.text(len(heldout.items))}; what was learnt there may have shaped this protocol, so "
        "`confirm` will refuse these problems unless the run is exploratory; freeze fresh ones"
        for found in shared(events, loaded.protocol.study, heldout, manifests(space, events))
        if found.count is not None
    ]


def examined(protocol: Path, *, amends: bool = False):
    """(protocol file, workspace, held-out manifest or None, warnings). Raises ProtocolError on lint errors; what is
    wrong with the arms of a protocol that `amends` another is a warning, because they may have been run already."""
    from cask_eval.cli.arms import faults
    from cask_eval.decide.lint import lint
    from cask_eval.protocol.load import load
    from cask_eval.splits.store import read

    loaded = load(protocol)
    workspace = Workspace.find(protocol.parent)
    heldout = workspace.resolve(loaded.protocol.task.heldout)
    manifest = read(heldout) if heldout.is_file() else None
    arms = list(faults(loaded.protocol))
    if amends:
        arms = [replace(f, level="warning") for f in arms]
    findings = [*arms, *lint(loaded.protocol, len(manifest.items) if manifest else None)]
    if errors := [f"{loaded.at(f.field)}: {f.message}" for f in findings if f.level == "error"]:
        raise ProtocolError(errors)
    return loaded, workspace, manifest, [f"{f.field}: {f.message}" for f in findings]
