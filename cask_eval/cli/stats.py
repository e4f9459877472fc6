"""cask-eval stats"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import click

from cask_eval.cli.common import json_option, print_json
from cask_eval.cli.share import Share
from cask_eval.errors import CaskError

# The exact bootstrap takes time that grows with n²; this is a few seconds.
MOST = 50_000

TESTS = {
    "mcnemar_exact": "McNemar, exact",
    "mcnemar_midp": "McNemar, mid-p",
    "sign_flip": "sign flip, exact",
    "paired_bootstrap": "paired bootstrap, exact",
    "tango_score": "Tango score",
}
INTERVALS = {"percentile_interval": "bootstrap percentile, exact", "tango_interval": "Tango score"}


@click.command("stats")
@click.option("--wins", required=True, type=click.IntRange(0), help="Problems only the candidate has right.")
@click.option("--losses", required=True, type=click.IntRange(0), help="Problems only the baseline has right.")
@click.option("--n", required=True, type=click.IntRange(1, MOST), help="All problems, ties included.")
@click.option("--alpha", default="0.05", show_default=True, type=Share("0.05"), help="Level of the tests.")
@click.option("--level", type=Share("0.95"), help="Confidence level of the intervals; 1 − alpha if not given.")
@click.option("--margin", type=Share("0.03"), help="Non-inferiority margin, a share of the problems.")
@json_option
def command(
    wins: int, losses: int, n: int, alpha: Fraction, level: Fraction | None, margin: Fraction | None, as_json: bool
) -> None:
    """Every test and interval for one binary comparison, one sample per problem."""
    from cask_eval.stats.pairs import Pairs
    from cask_eval.stats.summary import summarise

    if wins + losses > n:
        raise CaskError(
            f"--wins {wins} and --losses {losses}: together {wins + losses}, more than --n {n}; "
            "n counts all problems, those without a difference too"
        )
    if margin is not None and alpha >= Fraction(1, 2):
        raise CaskError(f"--alpha {float(alpha):g}: non-inferiority needs a level below 0.5; try 0.05")
    found = summarise(Pairs.binary(n, wins, losses), alpha, level, margin)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"candidate − baseline {found['difference']:+.4f} (standard error {found['standard_error']:.4f}); "
        f"{found['wins']} won, {found['losses']} lost, {found['ties']} tied of {found['n']}"
    )
    tests = Table("test", "two-sided p", "greater", "less", box=None, pad_edge=False)
    for name, title in TESTS.items():
        p = found[name]
        marked = " *" if p["two_sided"] <= found["alpha"] else "  "
        tests.add_row(title, f"{p['two_sided']:.6g}{marked}", f"{p['greater']:.6g}", f"{p['less']:.6g}")
    console.print(tests)
    intervals = Table("interval", "level", "low", "high", box=None, pad_edge=False)
    for name, title in INTERVALS.items():
        i = found[name]
        intervals.add_row(title, f"{i['level']:.4g}", f"{i['low']:+.4f}", f"{i['high']:+.4f}")
    console.print(intervals)
    if found["non_inferiority"]:
        ni = found["non_inferiority"]
        verdict = "shown" if ni["p"] <= found["alpha"] else "not shown"
        console.print(
            f"non-inferiority, margin {ni['margin']:g}: {verdict} at {found['alpha']:g} "
            f"(Tango score z {ni['z']:.4f}, one-sided p {ni['p']:.6g})"
        )
    console.print(f"* p ≤ {found['alpha']:g}")
    for note in found["notes"]:
        console.print(f"note: {note}")
