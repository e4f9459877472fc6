"""cask-eval export"""

from __future__ import annotations

from pathlib import Path

import click

from cask_eval.cli.common import json_option, print_json, study_argument, workspace


@click.command("export")
@study_argument
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The zip file to write.",
)
@click.option("--force", is_flag=True, help="Overwrite a bundle that is there.")
@json_option
@click.pass_context
def command(ctx: click.Context, study: str | None, output: Path, force: bool, as_json: bool) -> None:
    """Write all that verifying STUDY needs, and nothing else, into one zip file for a reviewer, who checks it with
    `cask-eval verify FILE`. The default is the one closed study. The same study makes the same bytes."""
    from cask_eval.bundle.write import export
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import STATES, pick

    space = workspace(ctx)
    name = pick(Ledger(space.ledger).events(), study, set(STATES) if study else {"closed"})
    done = export(space, name, output, force=force)
    if as_json:
        print_json(
            {
                "bundle": str(done.path),
                "study": name,
                "bytes": done.size,
                "digest": done.digest,
                "head": done.head,
                "files": list(done.files),
            }
        )
        return
    click.echo(f"{done.path}: {len(done.files)} files of study {name}, {done.size:,} bytes\n{done.digest}")
    click.echo(f"ledger head {done.head}\npublish the head; a reviewer runs `cask-eval verify {done.path} --head HEAD`")
