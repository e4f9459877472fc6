"""The report as one HTML file that asks nothing of the network: styles and figures are inside, and there are no
scripts."""

from __future__ import annotations

from cask_eval.report import format as fmt
from cask_eval.report import graders, regimes
from cask_eval.report.data import ReportData
from cask_eval.report.measures import NOTE


def render(data: ReportData) -> str:
    """The whole page. Every text is escaped; only the figures and the style sheet are put in as they are."""
    # Imported here: the command line must answer before either is loaded.
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from cask_eval.report import figures

    environment = Environment(
        loader=PackageLoader("cask_eval.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["short"] = fmt.short
    drawn = {}
    if data.cells:
        drawn["forest"] = Markup(figures.forest(data.groups, data.scale))
    if data.arms:
        drawn["caches"] = Markup(figures.caches(data.arms))
    css = Markup(environment.loader.get_source(environment, "report.css")[0])
    return environment.get_template("report.html").render(
        d=data, css=css, note=NOTE, graders=graders, regimes=regimes, figures={"forest": "", "caches": "", **drawn}
    )
