"""cask-eval lint"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cask_eval.cli.common import json_option, print_json, quiet
from cask_eval.errors import USAGE, CaskError
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.decide.lint import Finding


@click.command("lint")
@click.argument("protocol", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def command(protocol: Path, as_json: bool) -> int:
    """Check PROTOCOL: its fields, its branches, its methods, what its sample size can detect, and whether `register`
    would take it here. Nothing is written, downloaded or run."""
    quiet()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from cask_eval.cli.arms import faults
    from cask_eval.cli.register import spent
    from cask_eval.decide.lint import Finding, describe_power, lint
    from cask_eval.protocol.load import load
    from cask_eval.splits.store import read

    loaded, space = load(protocol), Workspace.find(protocol.parent)
    manifests, findings = {}, list(faults(loaded.protocol))
    for split in ("dev", "heldout"):
        try:
            manifests[split] = read(space.resolve(getattr(loaded.protocol.task, split)))
        except CaskError as error:
            also = "; the sample size is unknown, so power is not checked" if split == "heldout" else ""
            findings.append(Finding("error", f"task.{split}", f"{error}{also}"))
    count = len(manifests["heldout"].items) if "heldout" in manifests else None
    findings += lint(loaded.protocol, count)
    if count:
        findings += [Finding("warning", *line.split(": ", 1)) for line in spent(space, loaded, manifests["heldout"])]
    if len(manifests) == 2 and not any(f.level == "error" for f in findings):
        findings += _refused(space, protocol)
    findings.sort(key=lambda f: f.level != "error")
    broken = any(f.level == "error" for f in findings)
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
            click.echo(f"{f.level}: {loaded.at(f.field)}: {f.message}")
        if not broken:
            click.echo(f"power: {power}")
            click.echo(f"digest: {loaded.digest}")
    return USAGE if broken else 0


def _refused(space: Workspace, protocol: Path) -> list[Finding]:
    from cask_eval.decide.lint import Finding

    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        why = "torch and transformers are not installed, so the budgets are not checked against the prompts"
        return [Finding("warning", "models", why)]
    from cask_eval.runner.preview import preview

    return list(preview(space, protocol))
