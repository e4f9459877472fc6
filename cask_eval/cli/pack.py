"""cask-eval pack"""

from __future__ import annotations

import click

from cask_eval.cli.common import study_argument, workspace


@click.command("pack")
@study_argument
@click.pass_context
def command(ctx: click.Context, study: str | None) -> None:
    """Compress the records of a closed study. Everything reads them as before. Interrupted, it goes on when it is run
    again."""
    from cask_eval import jsonl
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState, pick
    from cask_eval.records.store import RecordStore

    space = workspace(ctx)
    events = Ledger(space.ledger).events()
    name = pick(events, study, {"closed"})
    state = StudyState.of(events, name)
    for committed in [era.records for era in state.eras if era.records] + [state.close[1].records]:
        path = space.resolve(committed.path)
        store = RecordStore(path)
        before = sum(p.stat().st_size for p in store.files if p.exists())
        segments = f" and {len(committed.segments)} segments" if committed.segments else ""
        if store.pack(committed):
            after = sum(jsonl.packed(p).stat().st_size for p in store.files)
            click.echo(f"{jsonl.packed(path)}{segments}: {before:,} bytes in {after:,}")
        else:
            click.echo(f"{jsonl.packed(path)}{segments}: packed already")
