"""A folder of replays as one HTML page and as CSV tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from cask_eval import jsonl
from cask_eval.replay.figures import title
from cask_eval.replay.frontier import Frontier
from cask_eval.replay.records import CEILING, Folder


def write(path: Path, found: Frontier, folder: Folder, figures: dict[str, str]) -> list[Path]:
    """frontier.html, frontier.csv and crossings.csv in the folder; returns their paths."""
    texts = {
        "frontier.html": html(found, folder, figures),
        "frontier.csv": points_csv(found),
        "crossings.csv": crossings_csv(found),
    }
    for name, text in texts.items():
        jsonl.replace(path / name, text.encode())
    return [path / name for name in texts]


def html(found: Frontier, folder: Folder, figures: dict[str, str]) -> str:
    """The page; `figures` are SVG elements by heading."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = ChoiceLoader([PackageLoader("cask_eval.replay"), PackageLoader("cask_eval.report")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    css = Markup(loader.get_source(environment, "report.css")[0])
    return environment.get_template("frontier.html").render(
        f=found,
        s=folder.settings,
        css=css,
        ceiling=CEILING,
        metric=title(found.question.metric),
        figures={name: Markup(svg) for name, svg in figures.items()},
    )


def points_csv(found: Frontier) -> str:
    fields = ["arm", "budget", "cache", "peak", "mean", "low", "high", "loss", "loss_low", "loss_high", "trials"]
    names = [{"cache": "mean_cache", "peak": "peak_cache"}.get(f, f) for f in fields]
    return _csv(names, ([_cell(getattr(p, f)) for f in fields] for p in found.points))


def crossings_csv(found: Frontier) -> str:
    names = ["better", "small", "worse", "large", "difference", "low", "high", "wins", "losses", "p", "adjusted"]
    caches = found.caches
    rows = (
        [*(_cell(getattr(c, n)) for n in names), _cell(caches[c.better, c.small]), _cell(caches[c.worse, c.large])]
        for c in found.crossings
    )
    return _csv([*names, "cache_better", "cache_worse"], rows)


def _csv(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return out.getvalue()


def _cell(value) -> str:
    return format(value, ".9g") if isinstance(value, float) else str(value)
