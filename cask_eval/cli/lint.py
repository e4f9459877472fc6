"""cask-eval lint"""

from __future__ import annotations

from pathlib import Path

import click

from cask_eval.cli.common import json_option, print_json
from cask_eval.errors import USAGE, CaskError
from cask_eval.workspace import Workspace


@click.command("lint")
@click.argument("protocol", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def command(protocol: Path, as_json: bool) -> int:
    """Check PROTOCOL: its fields, its branches, and what its sample size can detect."""
    from cask_eval.decide.lint import describe_power, lint
    from cask_eval.protocol.load import load
    from cask_eval.splits.store import read

    loaded = load(protocol)
    count = None
    try:
        count = len(read(Workspace.find(protocol.parent).resolve(loaded.protocol.task.heldout)).items)
    except CaskError as error:
        click.echo(f"note: sample size unknown, power not checked: {error}", err=True)
    findings = lint(loaded.protocol, count)
    power = describe_power(loaded.protocol, count) if count else None
    if as_json:
        print_json(
            {
                "digest": loaded.digest,
                "heldout": count,
                "power": power,
                "findings": [{"level": f.level, "field": f.field, "message": f.message} for f in findings],
            }
        )
    else:
        for f in findings:
            click.echo(f"{f.level}: {f.field}: {f.message}")
        if power:
            click.echo(f"power: {power}")
        click.echo(f"digest: {loaded.digest}")
    return USAGE if any(f.level == "error" for f in findings) else 0
