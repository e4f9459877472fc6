"""cask-eval pack"""

from __future__ import annotations

import click

from cask_eval.cli.common import study_argument, workspace


@click.command("pack")
@study_argument
@click.pass_context
def command(ctx: click.Context, study: str | None) -> None:
    """Compress the records of a closed study. Everything reads them as before."""
    from cask_eval import jsonl
    from cask_eval.errors import DriftError
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState, pick
    from cask_eval.records.store import RecordStore

    space = workspace(ctx)
    events = Ledger(space.ledger).events()
    name = pick(events, study, {"closed"})
    state = StudyState.of(events, name)
    for phase, event in (("dev", state.dev_run), ("heldout", state.close)):
        path = space.records(name, phase)
        if RecordStore(path).commit(space.root) != event[1].records:
            raise DriftError(f"{path} is not what the ledger commits to; restore it before it is packed")
        if not path.exists():
            click.echo(f"{jsonl.packed(path)}: packed already")
            continue
        before = path.stat().st_size
        jsonl.pack(path)
        click.echo(f"{jsonl.packed(path)}: {before:,} bytes in {jsonl.packed(path).stat().st_size:,}")
