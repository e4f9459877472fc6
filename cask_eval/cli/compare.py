"""cask-eval compare"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cask_eval.cli.common import json_option, print_json, say
from cask_eval.cli.share import Share
from cask_eval.errors import CaskError

if TYPE_CHECKING:
    from cask_eval.stats.comparison import Adjusted, Row
    from cask_eval.stats.table import Layout

# The first that a row has is the one beside its difference.
INTERVALS = {"tango": "Tango score", "t": "t", "percentile": "bootstrap percentile"}


class Names(click.ParamType):
    """Names with commas between, as a tuple."""

    name = "a,b"

    def convert(self, value, param, ctx) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))


@click.command("compare")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pair", required=True, type=Names(), help="Columns that name a problem, the same in every cell.")
@click.option("--arms", required=True, type=Names(), help="The baseline, then what is compared with it.")
@click.option("--arm-column", default="arm", show_default=True, metavar="NAME", help="The column that names the arm.")
@click.option("--by", default=(), type=Names(), help="Columns whose values make a cell.")
@click.option("--metrics", required=True, type=Names(), help="Columns of numbers; 0/1 and counts are exact.")
@click.option("--missing", type=click.Choice(["drop", "worst"]), help="Leave a pair out, or count its absence as 0.")
@click.option(
    "--alternative", type=click.Choice(["two-sided", "greater", "less"]), default="two-sided", show_default=True
)
@click.option("--alpha", default="0.05", show_default=True, type=Share("0.05"), help="Level of the adjusted tests.")
@click.option("--level", type=Share("0.95"), help="Confidence level of the intervals; 1 − alpha if not given.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="For what is not exact.")
@click.option("--replicates", default=9999, show_default=True, type=click.IntRange(99, 10_000_000), help="Likewise.")
@click.option(
    "--html", metavar="[FILE]", is_flag=False, flag_value="-", help="Write one HTML page, to stdout if no FILE."
)
@json_option
def command(
    file: Path,
    pair: tuple[str, ...],
    arms: tuple[str, ...],
    arm_column: str,
    by: tuple[str, ...],
    metrics: tuple[str, ...],
    missing: str | None,
    alternative: str,
    alpha: Fraction,
    level: Fraction | None,
    seed: int,
    replicates: int,
    html: str | None,
    as_json: bool,
) -> None:
    """Compare arms in FILE, a CSV table with one row per problem, arm and cell.

    Differences are arm minus baseline; which direction is better is for you to say. Every row that is printed counts
    in the correction.
    """
    from cask_eval.stats.comparison import adjust, compare
    from cask_eval.stats.table import Layout, read

    if as_json and html == "-":
        raise CaskError("--html without a file and --json both want stdout; write the page to a file: --html page.html")
    if html not in (None, "-") and Path(html).resolve() == file.resolve():
        raise CaskError(f"--html {html}: is the table itself; name another file")
    level = 1 - alpha if level is None else level
    layout = Layout(pair, arm_column, arms, metrics, by)
    drawn = {"seed": seed, "replicates": replicates}
    try:
        rows = [compare(p, level, alternative, **drawn) for p in read(file, layout, missing)]
    except ValueError as error:  # the level asks for more replicates
        raise CaskError(f"--replicates {replicates}: {error}; use more") from None
    adjusted = adjust(rows, alternative, **drawn)
    found = _document(file, layout, rows, adjusted, alpha=alpha, level=level, alternative=alternative, **drawn)
    if html is not None:
        page = _page(found)
        if html == "-":
            click.echo(page, nl=False)
        else:
            Path(html).write_text(page, encoding="utf-8")
            say(f"wrote {html}")
    if as_json:
        print_json(found)
    elif html != "-":
        _show(found)


def _document(
    file, layout: Layout, rows: list[Row], adjusted: Adjusted, *, alpha, level, alternative, seed, replicates
):
    """What is printed, ready for JSON."""
    return {
        "file": file.name,
        "baseline": layout.arms[0],
        "arms": list(layout.arms[1:]),
        "pair": list(layout.pair),
        "by": list(layout.by),
        "metrics": list(layout.metrics),
        "alternative": alternative,
        "alpha": float(alpha),
        "level": float(level),
        "family": len(rows),
        "seed": seed,
        "replicates": replicates,
        "max_t_exact": adjusted.joint_exact,
        "rows": [
            {
                "cell": dict(zip(layout.by, row.paired.cell)),
                "arm": row.paired.arm,
                "metric": row.paired.metric.name,
                "kind": _kind(row),
                "n": row.n,
                "dropped": row.paired.dropped,
                "filled": row.paired.filled,
                "wins": row.wins,
                "losses": row.losses,
                "ties": row.ties,
                "baseline_mean": row.baseline_mean,
                "mean": row.candidate_mean,
                "difference": row.difference,
                "standard_error": row.standard_error,
                "intervals": {name: list(ends) for name, ends in row.intervals.items()},
                "p": row.p,
                "sign_flip_exact": row.exact,
                "adjusted": {"bonferroni": b, "holm": h, "max_t": m},
            }
            for row, b, h, m in zip(rows, adjusted.bonferroni, adjusted.holm, adjusted.max_t)
        ],
        "notes": list(_notes(rows, adjusted, float(alpha), alternative)),
    }


def _kind(row: Row) -> str:
    metric = row.paired.metric
    return "binary" if metric.binary else "real" if metric.unit is None else "lattice"


def _notes(rows: list[Row], adjusted: Adjusted, alpha: float, alternative: str):
    from cask_eval.stats.summary import FEW_DISCORDANT

    sides = 2 if alternative == "two-sided" else 1
    differ = [row.wins + row.losses for row in rows]
    hopeless = [d for d in differ if len(rows) * sides / 2**d > alpha]
    if hopeless:
        yield (
            f"{len(hopeless)} of {len(rows)} rows cannot reach {alpha:g} after Bonferroni, whatever they show: with "
            f"{max(hopeless)} problems that differ the smallest p is {sides / 2 ** max(hopeless):.3g}"
        )
    if few := sum(d < FEW_DISCORDANT for d in differ):
        yield (
            f"in {few} of {len(rows)} rows fewer than {FEW_DISCORDANT} problems differ: the bootstrap then rejects "
            "more often than its level; the sign-flip test does not"
        )
    for name, word in (("dropped", "pairs were left out"), ("filled", "absent values count as 0")):
        if count := sum(getattr(row.paired, name) for row in rows):
            yield f"{count} {word}, over all rows"
    if empty := sum(not row.n for row in rows):
        yield f"{empty} rows have no pair and stay in the family with p = 1"
    estimated = sum(not row.exact for row in rows)
    if estimated or not adjusted.joint_exact:
        where = [*([f"{estimated} sign-flip p"] if estimated else []), *([] if adjusted.joint_exact else ["max-T"])]
        yield f"estimated from random sign patterns, and moving a little with the seed: {' and '.join(where)}"


def _show(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    title = f"{', '.join(found['arms'])} minus {found['baseline']}, {found['alternative']}, {found['family']} rows"
    console.print(escape(title))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (*found["by"], *_arm_heading(found), "metric"):
        table.add_column(escape(name))
    for name in ("n", "baseline", "mean", "difference", f"{found['level'] * 100:g} % interval", "W/L/T"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("p", "Bonferroni", "Holm", "max-T"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in _lines(found):
        table.add_row(*(escape(cell) for cell in (*line["names"], *line["numbers"], *line["p"])))
    # As wide as it needs to be: a number that is cut short is a wrong one.
    needed = Console(width=10_000).measure(table).maximum
    Console(highlight=False, width=max(console.width, needed)).print(table)
    for note in found["notes"]:
        console.print(f"note: {escape(note)}")


def _arm_heading(found: dict[str, Any]) -> list[str]:
    return ["arm"] if len(found["arms"]) > 1 else []


def _lines(found: dict[str, Any]):
    """Each row as text, for the table and the page."""
    for row in found["rows"]:
        arm = [row["arm"]] if _arm_heading(found) else []
        names, numbers = [*row["cell"].values(), *arm, row["metric"]], [str(row["n"])]
        if row["n"]:
            name = next(n for n in INTERVALS if n in row["intervals"])
            low, high = (f"{end:+.4g}" for end in row["intervals"][name])
            numbers += [f"{row[key]:.4g}" for key in ("baseline_mean", "mean")]
            numbers += [f"{row['difference']:+.4g}", f"[{low}, {high}]"]
        else:
            numbers += ["—"] * 4
        numbers.append(f"{row['wins']}/{row['losses']}/{row['ties']}")
        p = [row["p"].get("sign_flip", 1.0), *row["adjusted"].values()]
        yield {
            "names": names,
            "numbers": numbers,
            "p": [f"{v:.3g}" for v in p],
            "holds": [v <= found["alpha"] for v in p],
            "others": [(n.replace("_", " "), f"{v:.3g}") for n, v in row["p"].items() if n != "sign_flip"],
            "intervals": [(INTERVALS[n], f"[{ends[0]:+.4g}, {ends[1]:+.4g}]") for n, ends in row["intervals"].items()],
        }


def _page(found: dict[str, Any]) -> str:
    """One file that asks nothing of the network; every text is escaped."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = ChoiceLoader([PackageLoader("cask_eval.cli"), PackageLoader("cask_eval.report")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = Markup(loader.get_source(environment, "report.css")[0])
    return environment.get_template("compare.html").render(
        d=found, css=css, lines=list(_lines(found)), arm=_arm_heading(found), figure=Markup(_forest(found))
    )


def _forest(found: dict[str, Any]) -> str:
    """A panel per metric, each in its own unit: the difference and its interval, row by row."""
    import matplotlib

    from cask_eval.report import style

    panels = [(m, [r for r in found["rows"] if r["metric"] == m and r["n"]]) for m in found["metrics"]]
    panels = [(metric, rows) for metric, rows in panels if rows]
    if not panels:
        return ""
    with matplotlib.rc_context(style.RC):
        fig = style.figure(sum(0.55 + 0.25 * len(rows) for _, rows in panels))
        axes = fig.subplots(
            len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [0.3 + len(rows) for _, rows in panels]}
        )
        for ax, (metric, rows) in zip(axes[:, 0], panels):
            ax.axvline(0, color=style.MUTED, linewidth=1)
            for y, row in enumerate(rows):
                ends = next(row["intervals"][name] for name in INTERVALS if name in row["intervals"])
                ax.plot(ends, [y, y], color=style.NULL, linewidth=3, solid_capstyle="butt")
                ax.plot(row["difference"], y, "s", color=style.NULL, markersize=6)
            labels = [" ".join([*row["cell"].values(), *([row["arm"]] if _arm_heading(found) else [])]) for row in rows]
            ax.set_yticks(range(len(rows)), [style.wrap(label or "all") for label in labels])
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.grid(axis="x")
            ax.set_xlabel(f"{metric}, arm minus {found['baseline']}")
        return style.svg(fig, "forest", "Differences with their intervals; the table below has the numbers.")
