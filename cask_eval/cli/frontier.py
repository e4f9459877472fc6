"""cask-eval frontier"""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cask_eval.cli.common import json_option, locked_protocol, print_json, say, workspace
from cask_eval.errors import CaskError, StateError
from cask_eval.workspace import Workspace

if TYPE_CHECKING:
    from cask_eval.replay.frontier import Frontier


class Above(click.ParamType):
    """A decimal above 0, kept as it was written."""

    name = "DECIMAL"

    def convert(self, value, param, ctx) -> str:
        try:
            if 0 < Decimal(value) < 10**6:
                return value
        except InvalidOperation:
            pass
        self.fail(f"{value!r} is not a decimal above 0", param, ctx)


@click.command("frontier")
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--study", metavar="NAME", help="Take the held-out replays of this study instead of a folder's.")
@click.option("--metric", default="nll", show_default=True, help="top1, top5, nll or kl; with _after behind it, too.")
@click.option("--epsilon", required=True, type=Above(), help="The mean loss against the ceiling that is tolerated.")
@click.option("--alpha", default="0.05", show_default=True, type=Above(), help="Of intervals and tests.")
@click.option("--position-of", metavar="ARM@BUDGET", help="Draw where along the output this one loses (of a folder).")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    folder: Path | None,
    study: str | None,
    metric: str,
    epsilon: str,
    alpha: str,
    position_of: str | None,
    as_json: bool,
) -> None:
    """Say how small a budget is usable, and what crosses what, in a FOLDER of `cask-eval replay` or in a study.

    The first call writes the question into the folder. Call it before the replays are made, and the page can say that
    nobody knew them. Later calls with another metric or epsilon are refused. Writes frontier.html and tables.
    """
    from cask_eval.replay.frontier import METRICS

    if metric not in METRICS:
        raise CaskError(f"--metric {metric}: is none; use one of {', '.join(METRICS)}")
    if Decimal(alpha) >= Decimal("0.5"):
        raise CaskError(f"--alpha {alpha}: must be below 0.5")
    if (folder is None) == (study is None):
        raise CaskError("FOLDER, --study: give one of them")
    if study is not None and position_of:
        raise CaskError("--position-of: is drawn of a folder of replays, not of a study; leave it out")
    if study is not None:
        found, paths = _of_study(workspace(ctx), study, metric, epsilon, alpha)
    else:
        assert folder is not None
        found, paths = _of_folder(folder, metric, epsilon, alpha, position_of)
    if as_json:
        print_json({name: _json(f) for name, f in found.items()} if study else _json(found[""]) if found else None)
        return
    for name, f in found.items():
        _show(name, f, alpha)
    for path in paths:
        click.echo(path)


def _of_folder(folder: Path, metric: str, epsilon: str, alpha: str, position_of: str | None):
    from cask_eval.replay import page
    from cask_eval.replay.frontier import ask, frontier
    from cask_eval.replay.records import read_folder
    from cask_eval.replay.summary import trials_of

    if any((folder / name).exists() for name in ("heldout.jsonl", "heldout.jsonl.gz", "dev.jsonl", "dev.jsonl.gz")):
        raise CaskError(f"{folder}: is what a study left, not a folder of replays; use --study {folder.name}")
    question = ask(folder, metric, epsilon, alpha, len(trials_of(folder)))
    known = read_folder(folder)
    if known is None:
        say(f"asked: {metric} may lose {epsilon}; now make the replays with `cask-eval replay … -o {folder}`")
        return {}, []
    found = frontier(folder, question)
    drawn = _drawn(found)
    if position_of:
        drawn["positions"] = _positions(folder, position_of)
    return {"": found}, page.write(folder, found, page.of_folder(known), drawn)


def _of_study(space: Workspace, study: str, metric: str, epsilon: str, alpha: str):
    from cask_eval.ledger.log import Ledger
    from cask_eval.ledger.state import StudyState, known
    from cask_eval.records.store import RecordStore
    from cask_eval.replay import page
    from cask_eval.replay.frontier import ask
    from cask_eval.replay.study import Replay, check, frontiers

    events = Ledger(space.ledger).events()
    known(events, study)
    state = StudyState.of(events, study)
    if state.register is None:
        raise StateError(f"study {study!r} is not registered; run `cask-eval register PROTOCOL` first")
    event, register = state.register
    protocol = locked_protocol(register)
    check(protocol, metric)
    replays, count = [], 0
    for count, record in enumerate(RecordStore(space.records(study, "heldout")).read(), 1):
        if state.close is not None and (found := Replay.of(record, metric)):
            replays.append(found)
    question = ask(space.study(study), metric, epsilon, alpha, count)
    if state.close is None:
        say(f"asked: {metric} may lose {epsilon}; {study} is {state.name}, its replays are looked at when it is closed")
        return {}, []
    arms = list(protocol.heldout_arms(state.select[1].survivors))
    found = frontiers(protocol, event.hash, replays, arms, question)
    paths = []
    for model, f in found.items():
        about = page.of_study(protocol, register, model)
        paths += page.write(space.study(study), f, about, _drawn(f), f"frontier-{model}")
    return found, paths


def _drawn(found: Frontier) -> dict[str, str]:
    from cask_eval.replay import figures

    crossings = figures.crossings(found.crossings) if found.crossings else ""
    return {"frontier": figures.frontier(found), "crossings": crossings, "positions": ""}


def _json(found: Frontier) -> dict:
    return {
        "question": found.question.model_dump(),
        "problems": found.problems,
        "left_out": found.left_out,
        "points": [asdict(p) for p in found.points],
        "usable": {arm: asdict(u) for arm, u in found.usable.items()},
        "crossings": [asdict(c) for c in found.crossings],
        "contrasts": [asdict(c) for c in found.contrasts],
    }


def _show(name: str, found: Frontier, alpha: str) -> None:
    if name:
        click.echo(f"{name}:")
    above = f"above {found.largest}"
    for arm, u in found.usable.items():
        interval = f"[{u.low or above}, {u.high or above}]"
        shown = f"shown at {u.shown}" if u.shown else "shown at none of the budgets"
        click.echo(f"{arm}: minimum usable budget {u.estimate or above}, {interval}; {shown}")
    for what, rows in (("crossings", found.crossings), ("pairs at one budget", found.contrasts)):
        shown = [c for c in rows if Decimal(c.adjusted) <= Decimal(alpha)]
        click.echo(f"{len(shown)} of {len(rows)} {what} at adjusted p of {alpha} or less")
        for c in shown:
            click.echo(f"  {c.first}@{c.one} − {c.second}@{c.other}: {c.difference:+.4f}, p {c.adjusted:.3g}")


def _positions(folder: Path, name: str) -> str:
    """Raises CaskError when the folder has no such arm at that budget."""
    from cask_eval.replay import figures
    from cask_eval.replay.records import CEILING
    from cask_eval.replay.summary import tokens_of, trials_of

    arm, _, budget = name.partition("@")
    trials = trials_of(folder)
    own = [t for t in trials if t.arm == arm and str(t.budget) == budget]
    if not own:
        there = ", ".join(dict.fromkeys(f"{t.arm}@{t.budget}" for t in trials if t.arm != CEILING))
        raise CaskError(f"--position-of {name}: the folder has no such replays; it has {there}")
    ceiling = {(t.problem, t.sample): t for t in trials if t.arm == CEILING}
    lost, events = [], []
    for t in own:
        nll = tokens_of(folder, t).nll.mean(0)
        lost.append(nll - tokens_of(folder, ceiling[t.problem, t.sample]).nll.mean(0))
        events.append(sorted({step for r in (t.chains or [t.residency]) for step, _, _ in r.events}))
    return figures.positions(name, lost, events)
