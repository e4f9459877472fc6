"""cask-eval init"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from cask_eval.cli.common import say
from cask_eval.errors import CaskError

# Seeds and sizes of the example's splits; the embedded models were trained on other seeds.
SPLITS = {"dev": (1, 80), "heldout": (2, 200)}


@click.command("init")
@click.argument("folder", required=False, default=".")
@click.option("--study", default="alpha-vs-triattention", show_default=True, help="Name of the study.")
def command(folder: str, study: str) -> None:
    """Write an example protocol (commented YAML) and its two frozen splits into FOLDER.

    Nothing that exists is overwritten.
    """
    path = write_example(Path(folder), study)
    say(f"wrote {path} and its splits; read it, change it, then run:")
    for step in ("lint", "register"):
        click.echo(f"cask-eval {step} {shlex.quote(str(path))}")


def write_example(folder: Path, study: str) -> Path:
    """The protocol's path. Raises CaskError when it exists or the study's name is not one."""
    from cask_eval.fields import NAME
    from cask_eval.protocol.template import template
    from cask_eval.splits.freeze import freeze
    from cask_eval.splits.store import write
    from cask_eval.tasks import registry

    if not re.fullmatch(NAME, study):
        raise CaskError(
            f"--study {study!r}: use lower-case letters, digits, '.', '_' and '-', at most 63 in all, "
            "beginning with a letter or digit"
        )
    path = folder / "prereg" / f"{study}.yaml"
    if path.exists():
        raise CaskError(f"{path} exists and is not overwritten; choose another name or folder, or remove it")
    for name in ("prereg", "splits", "reports"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    task = registry.load("chain")
    for role, (seed, count) in SPLITS.items():
        source = {"seed": seed, "count": count}
        rule = f"items 0 to {count - 1} of seed {seed}, in order, at the task's default difficulty"
        write(
            folder / "splits" / f"chain-{role}.json",
            freeze(f"chain-{role}", "chain", role, source, rule, task.problems(source)),
        )
    path.write_text(template(study), encoding="utf-8", newline="\n")
    return path
