"""The report: HTML for reading, Markdown for quoting, a few lines for the terminal. JSON is the analysis document.

Nothing here computes a result; it prints the analysis document with the plan and the provenance beside it.
"""

from __future__ import annotations

from pathlib import Path

from cask_eval import jsonl
from cask_eval.report.data import Check, ReportData, gather

__all__ = ["Check", "ReportData", "gather", "write"]


def write(data: ReportData, folder: Path) -> dict[str, Path]:
    """Write report.html and report.md into `folder` (made where it is missing) and return their paths by format.
    The same data gives the same bytes."""
    from cask_eval.report import html, markdown

    folder.mkdir(parents=True, exist_ok=True)
    paths = {"html": folder / "report.html", "markdown": folder / "report.md"}
    jsonl.replace(paths["html"], html.render(data).encode())
    jsonl.replace(paths["markdown"], markdown.render(data).encode())
    return paths
