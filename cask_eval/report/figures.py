"""The report's two figures, from the analysis document."""

from __future__ import annotations

from collections.abc import Sequence

from cask_eval.decide.model import AnalysisDocument, CellResult
from cask_eval.report import format as fmt
from cask_eval.report import style


def forest(analysis: AnalysisDocument, names: Sequence[str]) -> str:
    """Each comparison's effect with its interval at the plain level (thick) and at the adjusted level (thin). `names`
    are the comparisons' printable names, in their order."""
    import matplotlib

    cells = analysis.cells
    labels = [style.wrap(name) for name in names]
    with matplotlib.rc_context(style.RC):
        fig = style.figure(0.9 + _height(labels, 0.42))
        ax = fig.subplots()
        ax.axvline(0, color=style.MUTED, linewidth=1, zorder=1)
        for y, cell in enumerate(cells):
            _effect(ax, y, cell)
        _rows(ax, labels)
        ax.set_xlabel("candidate minus baseline, percentage points")
        ax.grid(axis="x", zorder=0)
        ax.margins(x=0.04)
        _right(
            ax,
            [
                f"{fmt.points(c.difference)} pp, {c.outcome.upper() if c.outcome == 'void' else c.outcome}"
                for c in cells
            ],
        )
        described = "; ".join(
            f"{name} {fmt.points(c.difference)} points "
            f"{fmt.bracket(fmt.points(c.interval.low), fmt.points(c.interval.high))}, {c.outcome}"
            for name, c in zip(names, cells, strict=True)
        )
        return style.svg(fig, "forest", f"Forest plot of the effect of each comparison. {described}.")


def caches(analysis: AnalysisDocument) -> str:
    """Realised mean cache of every arm, per cell."""
    import matplotlib

    cells = analysis.arms
    names = list(dict.fromkeys(name for arms in cells.values() for name in arms))
    labels = [style.wrap(fmt.one_line(cell)) for cell in cells]
    with matplotlib.rc_context(style.RC):
        fig = style.figure(1.1 + _height(labels, 0.17 * len(names) + 0.16))
        ax = fig.subplots()
        step = 0.7 / max(len(names), 1)
        for i, name in enumerate(names):
            marker = style.ARM_MARKERS[i % len(style.ARM_MARKERS)]
            colour = style.ARM_COLOURS[min(i, len(style.ARM_COLOURS) - 1)]
            here = [(y, arms[name]) for y, arms in enumerate(cells.values()) if name in arms and arms[name].mean_cache]
            x = [float(fmt.value(arm.mean_cache)) for _, arm in here]
            # Matched arms lie on top of each other, so each gets its own line.
            ys = [y + (i - (len(names) - 1) / 2) * step for y, _ in here]
            ax.hlines(ys, 0, x, color=style.RULE, linewidth=1.2, zorder=1)
            ax.plot(
                x, ys, linestyle="none", marker=marker, markersize=5, color=colour, label=fmt.one_line(name), zorder=2
            )
            for at, y, (_, arm) in zip(x, ys, here, strict=True):
                ax.annotate(
                    fmt.entries(arm.mean_cache),
                    (at, y),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                    color=style.MUTED,
                )
        _rows(ax, labels)
        known = [float(fmt.value(a.mean_cache)) for arms in cells.values() for a in arms.values() if a.mean_cache]
        ax.set_xlim(0, 1.12 * max(known, default=0) or 1)
        ax.set_xlabel("mean resident entries per layer and head")
        ax.grid(axis="x", zorder=0)
        fig.legend(loc="outside upper left", ncols=4, handletextpad=0.3)
        described = "; ".join(
            f"{fmt.one_line(cell)}: "
            + ", ".join(f"{fmt.one_line(n)} {fmt.entries(a.mean_cache)}" for n, a in arms.items())
            for cell, arms in cells.items()
        )
        return style.svg(fig, "caches", f"Realised mean cache of each arm per cell. {described}.")


def _effect(ax, y: int, cell: CellResult) -> None:
    colour = style.OUTCOME[cell.outcome]
    void = cell.outcome == "void"
    for interval, width in ((cell.interval_adjusted, 1.0), (cell.interval, 3.2)):
        low, high = (100 * float(fmt.value(v)) for v in (interval.low, interval.high))
        # butt caps: a rounded end would make the interval look longer than it is
        ax.plot(
            [low, high],
            [y, y],
            color=colour,
            linewidth=width,
            solid_capstyle="butt",
            linestyle=(0, (2, 1.5)) if void else "-",
            zorder=2,
        )
    ax.plot(
        100 * float(fmt.value(cell.difference)),
        y,
        marker="s",
        markersize=6.5,
        color=colour,
        zorder=3,
        markerfacecolor=style.PAPER if void else colour,
        markeredgewidth=1.4,
    )


def _rows(ax, labels: list[str]) -> None:
    """One row per label, from the top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)


def _right(ax, labels: list[str]) -> None:
    """A column of text at the right edge, level with the rows."""
    twin = ax.twinx()
    twin.set_ylim(ax.get_ylim())
    twin.set_yticks(range(len(labels)), labels)
    twin.tick_params(right=False)
    ax.tick_params(left=False)  # twinx brings the left ticks back


def _height(labels: list[str], row: float) -> float:
    """Inches for all rows; a name of several lines needs room for them."""
    return len(labels) * max(row, 0.16 * max(label.count("\n") + 1 for label in labels) + 0.1)
