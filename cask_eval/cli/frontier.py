"""cask-eval frontier"""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from pathlib import Path

import click

from cask_eval.cli.common import json_option, print_json
from cask_eval.errors import CaskError


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
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--metric", default="nll", show_default=True, help="top1, top5, nll or kl; with _after behind it, too.")
@click.option("--epsilon", required=True, type=Above(), help="The mean loss against the ceiling that is tolerated.")
@click.option("--alpha", default="0.05", show_default=True, type=Above(), help="Of intervals and tests.")
@click.option("--position-of", metavar="ARM@BUDGET", help="Draw where along the output this one loses.")
@json_option
def command(folder: Path, metric: str, epsilon: str, alpha: str, position_of: str | None, as_json: bool) -> None:
    """Say how small a budget is usable, and what crosses what, in a FOLDER of `cask-eval replay`.

    The first call writes the question into the folder. Call it before the replays are made, and the page can say that
    nobody knew them. Later calls with another metric or epsilon are refused. Writes frontier.html, frontier.csv and
    crossings.csv.
    """
    from cask_eval.replay import figures, page
    from cask_eval.replay.frontier import METRICS, ask, frontier
    from cask_eval.replay.records import read_folder

    if metric not in METRICS:
        raise CaskError(f"--metric {metric}: is none; use one of {', '.join(METRICS)}")
    if Decimal(alpha) >= Decimal("0.5"):
        raise CaskError(f"--alpha {alpha}: must be below 0.5")
    question = ask(folder, metric, epsilon, alpha)
    known = read_folder(folder)
    if known is None:
        click.echo(f"asked: {metric} may lose {epsilon}; now make the replays with `cask-eval replay … -o {folder}`")
        return
    found = frontier(folder, question)
    drawn = {"frontier": figures.frontier(found), "crossings": "", "positions": ""}
    if found.crossings:
        drawn["crossings"] = figures.crossings(found.crossings)
    if position_of:
        drawn["positions"] = _positions(folder, position_of)
    paths = page.write(folder, found, known, drawn)
    if as_json:
        print_json(
            {
                "question": question.model_dump(),
                "problems": found.problems,
                "left_out": found.left_out,
                "points": [asdict(p) for p in found.points],
                "usable": {arm: asdict(u) for arm, u in found.usable.items()},
                "crossings": [asdict(c) for c in found.crossings],
            }
        )
        return
    for arm, u in found.usable.items():
        interval = f"[{u.low or 'beyond'}, {u.high or 'beyond'}]"
        estimate = u.estimate or "beyond the grid"
        click.echo(f"{arm}: minimum usable budget {estimate} {interval}, shown {u.shown or 'none'}")
    crossed = [c for c in found.crossings if Decimal(c.adjusted) <= Decimal(alpha)]
    click.echo(f"{len(crossed)} of {len(found.crossings)} crossings at adjusted p of {alpha} or less")
    for c in crossed:
        click.echo(f"  {c.better}@{c.small} over {c.worse}@{c.large}: {c.difference:+.4f}, p {c.adjusted:.3g}")
    for path in paths:
        click.echo(path)


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
