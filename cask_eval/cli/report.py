"""cask-eval report"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cask_eval.cli.common import json_option, locked_protocol, say, study_argument, workspace
from cask_eval.errors import DriftError, StateError
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.protocol.model import Protocol
    from cask_eval.records.store import RecordStore


@click.command("report")
@study_argument
@json_option
@click.pass_context
def command(ctx: click.Context, study: str | None, as_json: bool) -> None:
    """Write report.html and report.md of STUDY beside its records; --json prints the analysis document."""
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import pick

    space = workspace(ctx)
    name = pick(Ledger(space.ledger).events(), study, {"closed"})
    paths = write_report(space, name)
    if as_json:
        click.echo(space.analysis(name).read_text(encoding="utf-8"), nl=False)
        return
    summary(space, name)
    for path in paths.values():
        click.echo(path)


def write_report(space: Workspace, name: str) -> dict[str, Path]:
    """Report files by format. The verification that the page shows is run now. Raises StateError before analysis."""
    from cask_eval.report import write

    return write(_gather(space, name, verified=True), space.study(name))


def summary(space: Workspace, name: str) -> None:
    """A few lines on stdout."""
    from rich.console import Console

    from cask_eval.report.text import render

    Console().print(render(_gather(space, name)), highlight=False, soft_wrap=not sys.stdout.isatty())


def _gather(space: Workspace, name: str, verified: bool = False):
    from cask_eval.canonical import loads
    from cask_eval.decide.model import AnalysisDocument
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState
    from cask_eval.records.store import RecordStore
    from cask_eval.report import Check, gather

    path = space.analysis(name)
    if not path.is_file():
        raise StateError(f"study {name!r} has no analysis yet; run `cask-eval analyze {name}`")
    events = Ledger(space.ledger).events()
    protocol = locked_protocol(StudyState.of(events, name).register[1])
    try:
        document = AnalysisDocument.model_validate(loads(path.read_bytes()))
    except ValueError as error:
        what = str(error).splitlines()[0]
        raise DriftError(
            f"{path}: is no analysis document ({what}); move it away and run `cask-eval analyze {name}`"
        ) from None
    if not verified:
        return gather(document, protocol, events)
    from cask_eval.tasks import data
    from cask_eval.verify.run import verify

    verdict = verify(space, name)
    # The page is published: where files were looked for on this machine is left out.
    here = [str(place) for place in (space.root, data.place()) if place]
    checks = [Check(r.id, r.title, r.status, tuple(_without(d, here) for d in r.details)) for r in verdict.results]
    records = RecordStore(space.records(name, "heldout"))
    differences = _differences(space, protocol, records)
    return gather(document, protocol, events, checks, verdict.level, records.read(), differences)


def _without(text: str, places: list[str]) -> str:
    for place in places:
        text = text.replace(f"{place}/", "").replace(place, "…")
    return text


def _differences(space: Workspace, protocol: Protocol, records: RecordStore):
    """Where math-verify alone would have decided otherwise, if the task knows and its problems are at hand."""
    from cask_eval.errors import CaskError
    from cask_eval.report.graders import Differences, compare
    from cask_eval.splits.check import check_problems
    from cask_eval.splits.store import read
    from cask_eval.tasks import data, registry

    try:
        task = registry.load(protocol.task.name)
        if not hasattr(task, "plain"):
            return Differences()
        manifest = read(space.resolve(protocol.task.heldout))
        with data.inside(space.root, offline=True):
            problems = task.problems(manifest.source)
        if faults := check_problems(manifest, problems):
            return Differences(absent=f"the problems at hand are not those of the study: {faults[0]}")
        return compare(records.read(), task, {p.id: p for p in problems}, say)
    except (CaskError, ValueError, OSError):
        # The page is of the study's own results; a second opinion that cannot be had does not hold it up.
        return Differences(absent="the held-out problems or records cannot be read here; cask-eval verify says why")
