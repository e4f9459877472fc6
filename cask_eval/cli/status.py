"""cask-eval status"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cask_eval.canonical import digest_bytes
from cask_eval.cli.common import (
    amending,
    command_line,
    counted,
    json_option,
    print_json,
    say,
    study_argument,
    workspace,
)
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.ledger.events import Register


@click.command("status")
@study_argument
@json_option
@click.pass_context
def command(ctx: click.Context, study: str | None, as_json: bool) -> None:
    """Where each study of the ledger stands, and the command that comes next. Accuracies are not shown."""
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import known, next_command, studies

    space = workspace(ctx)
    events = Ledger(space.ledger).events()
    if study:
        known(events, study)
    rows = []
    for name, state in studies(events).items():
        if study and name != study:
            continue
        if state.register is None:
            more = f"`cask-eval verify {name}` says more"
            say(f"{name}: the ledger has events of this study, but no registration; {more}")
            continue
        rows.append(
            {
                "study": name,
                "state": state.name,
                "registered": state.register[0].time,
                "registration": state.register[0].hash,
                "protocol": state.register[1].protocol_digest,
                "label": state.label,
                "amendments": len(state.amendments),
                "stamped": [event.payload["gen_time"] for event, _ in state.anchors],
                "branch": state.analysis[1].branch if state.analysis else None,
                "next": f"cask-eval {next_command(state)}",
                "changed": "" if state.close else _changed(space, state.register[1]),
            }
        )
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("no study is registered; write one with `cask-eval init`, lock it with `cask-eval register`")
    for r in [] if as_json else rows:
        more = [
            f"amended {counted(r['amendments'], 'time')}" if r["amendments"] else "",
            "exploratory" if r["label"] == "exploratory" else "",
            counted(len(r["stamped"]), "time stamp") if r["stamped"] else "",
        ]
        said = "".join(f", {text}" for text in more if text)
        click.echo(
            f"{r['study']}: {r['state']}, registered {r['registered']}, protocol {r['protocol'][:15]}{said}\n"
            f"  next: {command_line(space, r['next'].removeprefix('cask-eval '))}"
        )
        if r["changed"]:
            again = amending(space, studies(events)[r["study"]].register[1])
            click.echo(f"  but first: {r['changed']}; restore it, or say what changed and why: {again}")


def _changed(space: Workspace, registered: Register) -> str:
    """What became of the protocol's file since it was registered; "" where it is as it was."""
    path = space.resolve(registered.protocol_path)
    if not path.is_file():
        return f"{registered.protocol_path} is gone"
    same = digest_bytes(path.read_bytes()) == registered.protocol_raw
    return "" if same else f"{registered.protocol_path} is not what was registered"
