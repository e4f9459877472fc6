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
    """Check PROTOCOL: its fields, its branches, its methods, and what its sample size can detect."""
    from cask_eval.cli.arms import faults
    from cask_eval.decide.lint import Finding, describe_power, lint
    from cask_eval.protocol.load import load
    from cask_eval.splits.store import read

    loaded = load(protocol)
    sizes, missing = {}, []
    for split in ("dev", "heldout"):
        try:
            path = Workspace.find(protocol.parent).resolve(getattr(loaded.protocol.task, split))
            sizes[split] = len(read(path).items)
        except CaskError as error:
            also = "; the sample size is unknown, so power is not checked" if split == "heldout" else ""
            missing.append(Finding("warning", f"task.{split}", f"{error}{also}"))
    count = sizes.get("heldout")
    findings = [*faults(loaded.protocol), *lint(loaded.protocol, count), *missing]
    findings.sort(key=lambda f: f.level != "error")
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
