"""cask-eval split freeze|show|check"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cask_eval.cli.common import json_option, print_json, say
from cask_eval.errors import CaskError, SplitError

data_option = click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="A folder with data sets, or one file: the local copy to read. Default: $CASK_EVAL_DATA.",
)


@click.group("split")
def command() -> None:
    """Freeze, show and check split manifests."""


@command.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--task", required=True, help="Task plug-in.")
@click.option("--role", type=click.Choice(["dev", "heldout"]), required=True)
@click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help="What the task needs to make the problems."
)
@click.option("--rule", default=None, help="How the items were drawn, in words.")
@click.option(
    "--disjoint-from",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Manifests that must share no problem with this one.",
)
@data_option
@click.pass_context
def freeze(
    ctx: click.Context,
    out: Path,
    task: str,
    role: str,
    params: tuple[str, ...],
    rule: str | None,
    disjoint_from: tuple[Path, ...],
    data: Path | None,
) -> None:
    """Write the manifest OUT: ids and digests of the problems that --param describes."""
    from cask_eval.splits import freeze as freezing
    from cask_eval.splits.disjoint import overlaps
    from cask_eval.splits.store import read, write
    from cask_eval.tasks import registry

    source: dict[str, str | int] = {}
    for param in params:
        name, value = _param(param)
        if name in source:
            raise CaskError(f"--param {name} is given twice, as {source[name]} and {value}; keep one")
        source[name] = value
    plugin = registry.load(task)
    said = "the problems that `source` describes, in order"
    with _reading(ctx, out, data):
        problems = _problems(plugin, source, "--param")
    if hasattr(plugin, "describe"):
        source, said = plugin.describe(source)
    manifest = freezing.freeze(out.stem, task, role, source, rule or said, problems)
    for other in disjoint_from:
        shared = overlaps(read(other), manifest)
        if shared:
            raise SplitError(f"{out} would overlap {other}:\n" + "\n".join(shared[:10]))
    write(out, manifest)
    say(f"{out}: {len(manifest.items)} problems")
    click.echo(manifest.merkle_root)


@command.command()
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def show(manifest: Path, as_json: bool) -> None:
    """Print what a manifest holds: source, rule, strata, digests."""
    from cask_eval.splits.store import read

    m = read(manifest)
    strata = dict(sorted(Counter(i.stratum for i in m.items).items()))
    about = {
        "name": m.name,
        "task": m.task,
        "role": m.role,
        "source": m.source,
        "rule": m.rule,
        "count": len(m.items),
        "strata": strata,
        "merkle_root": m.merkle_root,
        "digest": m.digest(),
    }
    if as_json:
        print_json(about)
    else:
        for key, value in about.items():
            if isinstance(value, dict):
                width = max((len(str(name)) for name in value), default=0)
                click.echo(key)
                for name, one in value.items():
                    click.echo(f"  {name or '(none)':{width}}  {one}")
            else:
                click.echo(f"{key:12} {value}")


@command.command()
@click.argument("manifests", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_option
@click.pass_context
def check(ctx: click.Context, manifests: tuple[Path, ...], data: Path | None) -> None:
    """Check that manifests are whole, fit the problems the task makes today, and are disjoint from each other.

    With --data, the problems are those of a local copy: every one is compared with its digest.
    """
    from cask_eval.splits.check import check_manifest, check_problems
    from cask_eval.splits.disjoint import overlaps
    from cask_eval.splits.store import read
    from cask_eval.tasks import registry

    read_ones = [(path, read(path)) for path in manifests]
    faults = []
    for path, m in read_ones:
        with _reading(ctx, path, data):
            problems = _problems(registry.load(m.task), m.source, f"{path}: source")
        faults += [f"{path}: {f}" for f in check_manifest(m) + check_problems(m, problems)]
    for i, (path, m) in enumerate(read_ones):
        for other, n in read_ones[i + 1 :]:
            faults += [f"{path} and {other}: {f}" for f in overlaps(m, n)]
    if faults:
        raise SplitError("\n".join(faults))
    click.echo(f"{len(read_ones)} manifests are whole, fit their problems and do not overlap")


@contextmanager
def _reading(ctx: click.Context, manifest: Path, place: Path | None) -> Iterator[None]:
    """Tasks find their files: where --data says, or in the workspace around the manifest or the current folder."""
    from cask_eval.tasks.data import at, inside
    from cask_eval.workspace import Workspace

    try:
        root = Workspace.find(manifest.absolute().parent).root
    except CaskError:
        root = Path(ctx.obj or ".").resolve()
    with at(place), inside(root):
        yield


def _param(text: str) -> tuple[str, str | int]:
    name, sep, value = text.partition("=")
    if not sep or not name:
        raise CaskError(f"--param {text!r}: write NAME=VALUE")
    return name, int(value) if re.fullmatch(r"-?[0-9]{1,40}", value) else value


def _problems(task: Any, source: dict[str, Any], where: str) -> list:
    """The task's problems. A plug-in may raise anything; what it says about its parameters is for the user."""
    try:
        return task.problems(source)
    except (ValueError, TypeError, LookupError, OSError) as error:
        said = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise SplitError(f"{where}: {said}") from None
