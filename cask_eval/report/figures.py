"""The report's two figures. Both have a row per number under a heading per group, like the
tables; heights are in inches, so that the rows of a study of any size look alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cask_eval.decide.model import CellResult
from cask_eval.report import format as fmt
from cask_eval.report import style
from cask_eval.report.data import Arm, Cell
from cask_eval.report.scale import Scale

_LINE = 0.16  # inches that a line of a label takes


@dataclass(frozen=True)
class _Rows:
    """Where rows and headings stand, in inches from the top. at: of each row, in the order given."""

    labels: list[str]
    at: list[float]
    headings: list[tuple[str, float]]
    height: float


def forest(groups: Sequence[tuple[str, Sequence[Cell]]], scale: Scale) -> str:
    """Each comparison's effect with its interval at the plain level (thick) and at the adjusted level (thin)."""
    import matplotlib

    cells = [cell for _, of_group in groups for cell in of_group]
    rows = _rows([(name, [c.cell for c in of_group]) for name, of_group in groups], 0.4 if len(cells) <= 8 else 0.25)
    with matplotlib.rc_context(style.RC):
        fig = style.figure(0.9 + rows.height)
        ax = fig.subplots()
        ax.axvline(0, color=style.MUTED, linewidth=1, zorder=1)
        for y, cell in zip(rows.at, cells, strict=True):
            _effect(ax, y, cell.result, scale.factor)
        _label(fig, ax, rows)
        ax.set_xlabel(scale.axis)
        ax.grid(axis="x", zorder=0)
        ax.margins(x=0.04)
        _right(ax, rows, [f"{c.effect} {scale.short}, {c.outcome_word}" for c in cells])
        described = "; ".join(f"{c.name} {c.effect} {scale.unit} {c.interval}, {c.outcome}" for c in cells)
        return style.svg(fig, "forest", f"Forest plot of the effect of each comparison. {described}.")


def caches(arms: Sequence[tuple[str, Sequence[Arm]]]) -> str:
    """Realised mean cache of every arm per cell, with a line where the baseline's lies."""
    import matplotlib

    rows = _rows([(cell, [arm.name for arm in of_cell]) for cell, of_cell in arms], 0.2)
    places = iter(rows.at)
    with matplotlib.rc_context(style.RC):
        fig = style.figure(0.7 + rows.height)
        ax = fig.subplots()
        widest = 0.0
        for _, of_cell in arms:
            at = [next(places) for _ in of_cell]
            for y, arm in zip(at, of_cell, strict=True):
                if arm.mean is None:
                    continue
                x = float(arm.mean)
                widest = max(widest, x)
                marker, colour = style.ARMS[arm.role]
                ax.hlines(y, 0, x, color=style.RULE, linewidth=1.2, zorder=1)
                ax.plot(x, y, linestyle="none", marker=marker, markersize=5, color=colour, zorder=3)
                # On paper's ground, so that the baseline's line does not run through the number.
                ax.annotate(
                    arm.mean_cache,
                    (x, y),
                    (7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                    color=style.MUTED,
                    bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 0.6},
                    zorder=2,
                )
                if arm.role == "baseline":
                    ends = (at[0] - 0.1, at[-1] + 0.1)
                    ax.vlines(x, *ends, color=style.MUTED, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1.5)
        _label(fig, ax, rows)
        ax.set_xlim(0, 1.12 * widest or 1)
        ax.set_xlabel("mean resident entries per layer and head")
        ax.grid(axis="x", zorder=0)
        described = "; ".join(
            f"{cell}: " + ", ".join(f"{arm.name} {arm.mean_cache}" for arm in of_cell) for cell, of_cell in arms
        )
        return style.svg(fig, "caches", f"Realised mean cache of each arm per cell. {described}.")


def _effect(ax, y: float, cell: CellResult, factor: int) -> None:
    colour = style.OUTCOME[cell.outcome]
    void = cell.outcome == "void"
    for interval, width in ((cell.interval_adjusted, 1.0), (cell.interval, 3.2)):
        if not interval.low:  # nothing could be compared
            continue
        low, high = (factor * float(fmt.value(v)) for v in (interval.low, interval.high))
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
        factor * float(fmt.value(cell.difference)),
        y,
        marker="s",
        markersize=6.5,
        color=colour,
        zorder=3,
        markerfacecolor=style.PAPER if void else colour,
        markeredgewidth=1.4,
    )


def _rows(groups: Sequence[tuple[str, Sequence[str]]], row: float) -> _Rows:
    """Rows of at least `row` inches; a name of several lines takes more. A heading without a text takes none."""
    labels: list[str] = []
    at: list[float] = []
    headings: list[tuple[str, float]] = []
    y = 0.0

    def place(height: float) -> float:
        nonlocal y
        y += height
        return y - height / 2

    for heading, names in groups:
        if heading:
            text = style.wrap(heading, 70)
            y += 0.08 if y else 0.0  # apart from the group before
            headings.append((text, place(0.12 + _LINE * (text.count("\n") + 1))))
        for name in names:
            labels.append(style.wrap(name))
            at.append(place(max(row, 0.04 + _LINE * (labels[-1].count("\n") + 1))))
    return _Rows(labels, at, headings, y)


def _label(fig, ax, rows: _Rows) -> None:
    """Row labels beside the axis, headings at the figure's left edge."""
    from matplotlib.transforms import blended_transform_factory

    ax.set_yticks(rows.at, rows.labels)
    ax.set_ylim(rows.height, 0)
    where = blended_transform_factory(fig.transFigure, ax.transData)
    for text, y in rows.headings:
        # Out of the layout, or a long heading would push the axis to the right.
        ax.text(0.005, y, text, transform=where, va="center", fontweight="bold").set_in_layout(False)


def _right(ax, rows: _Rows, labels: list[str]) -> None:
    """A column of text at the right edge, level with the rows."""
    twin = ax.twinx()
    twin.set_ylim(ax.get_ylim())
    twin.set_yticks(rows.at, labels)
    twin.tick_params(right=False)
    ax.tick_params(left=False)  # twinx brings the left ticks back
