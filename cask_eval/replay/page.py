"""A folder of replays as one HTML page and as CSV tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cask_eval import jsonl
from cask_eval.ledger.events import Register
from cask_eval.protocol.model import Protocol
from cask_eval.replay.figures import title
from cask_eval.replay.frontier import Frontier
from cask_eval.replay.records import CEILING, Folder
from cask_eval.stats.frontier import Contrast


@dataclass(frozen=True)
class About:
    """What was replayed. standing: what the page may be called."""

    model: str
    digest: str
    source: str
    budgets: list[int]
    samples: int
    temperature: str
    top_p: str
    max_new_tokens: int
    standing: str


def of_folder(folder: Folder) -> About:
    s = folder.settings
    return About(
        s.model,
        s.model_digest,
        s.source.split(" ")[0],
        s.budgets,
        s.samples,
        s.temperature,
        s.top_p,
        s.max_new_tokens,
        "Exploratory: budgets are nominal, and nothing here was registered.",
    )


def of_study(protocol: Protocol, register: Register, model: str) -> About:
    g = protocol.generation
    return About(
        model,
        next(m.digest for m in register.models if m.name == model),
        f"study {protocol.study}",
        protocol.budgets,
        g.samples,
        g.temperature,
        g.top_p,
        g.max_new_tokens,
        f"Held-out replays of the registered study {protocol.study}; its arms have matched mean caches at each budget. "
        "What it registered stands in its report; what is on this page is beside it and decides nothing.",
    )


def write(path: Path, found: Frontier, about: About, figures: dict[str, str], name: str = "frontier") -> list[Path]:
    """NAME.html, NAME.csv, NAME-crossings.csv and NAME-contrasts.csv in the folder; returns their paths."""
    texts = {
        f"{name}.html": html(found, about, figures),
        f"{name}.csv": points_csv(found),
        f"{name}-crossings.csv": contrasts_csv(found, found.crossings),
        f"{name}-contrasts.csv": contrasts_csv(found, found.contrasts),
    }
    for file, text in texts.items():
        jsonl.replace(path / file, text.encode())
    return [path / file for file in texts]


def html(found: Frontier, about: About, figures: dict[str, str]) -> str:
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
        s=about,
        css=css,
        ceiling=CEILING,
        metric=title(found.question.metric),
        figures={name: Markup(svg) for name, svg in figures.items()},
    )


def points_csv(found: Frontier) -> str:
    fields = ["arm", "budget", "cache", "peak", "mean", "low", "high", "loss", "loss_low", "loss_high", "trials"]
    names = [{"cache": "mean_cache", "peak": "peak_cache"}.get(f, f) for f in fields]
    return _csv(names, ([_cell(getattr(p, f)) for f in fields] for p in found.points))


def contrasts_csv(found: Frontier, contrasts: Sequence[Contrast]) -> str:
    names = ["first", "one", "second", "other", "difference", "low", "high", "wins", "losses", "p", "adjusted"]
    caches = found.caches
    rows = (
        [*(_cell(getattr(c, n)) for n in names), _cell(caches[c.first, c.one]), _cell(caches[c.second, c.other])]
        for c in contrasts
    )
    return _csv([*names, "cache_first", "cache_second"], rows)


def _csv(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return out.getvalue()


def _cell(value) -> str:
    return format(value, ".9g") if isinstance(value, float) else str(value)
