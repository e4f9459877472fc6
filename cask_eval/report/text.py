"""The result in a few lines for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cask_eval.report import format as fmt
from cask_eval.report.data import ReportData

if TYPE_CHECKING:
    from rich.text import Text

_STYLE = {"positive": "green", "negative": "red", "null": "", "void": "yellow"}


def render(data: ReportData) -> Text:
    """Decision, then one line per comparison. For a pipe, print its ``.plain``."""
    from rich.text import Text

    out = Text()
    out.append(data.decision, style="bold")
    out.append(f"\nbranch {data.branch} · {data.label} · evidence {data.level}, {data.level_text}\n")
    confirmed = f"{data.screened}; {data.gains}" if data.screened else ""
    for line in filter(None, (confirmed, data.counts)):
        out.append(f"{line}\n", style="dim")

    # Aligned by hand: a pipe and a narrow terminal get the same lines.
    rows = [
        (
            c.name,
            c.outcome_word,
            f"{c.effect} {data.scale.short}",
            c.interval,
            c.wlt,
            fmt.relation(c.p_registered),
            fmt.relation(c.p_adjusted, "p_adj"),
            f"cache {c.ratio}",
        )
        for c in data.cells
    ]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))] if rows else []
    for cell, row in zip(data.cells, rows, strict=True):
        for i, (text, width) in enumerate(zip(row, widths, strict=True)):
            right = i in (2, 3, 4)
            out.append(text.rjust(width) if right else text.ljust(width), style=_STYLE[cell.outcome] if i == 1 else "")
            out.append("  " if i < len(row) - 1 else "\n")
        for reason in cell.reasons:
            out.append(f"    {reason}\n", style="yellow" if cell.verdict == "void" else "dim")
    out.rstrip()
    return out
