"""What the figures look like, and how a figure becomes inline SVG.

Colours are written as placeholders and replaced by the page's CSS variables, so that a figure follows the page
into dark mode and onto paper. The SVG holds no date, no version and no random id: same data, same bytes.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Placeholder → CSS variable. The values only have to be distinct and unlikely.
INK, MUTED, RULE = "#010203", "#010204", "#010205"
POSITIVE, NEGATIVE, NULL, VOID = "#010206", "#010207", "#010208", "#010209"
PAPER = "#01020a"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    PAPER: "paper",
    POSITIVE: "positive",
    NEGATIVE: "negative",
    NULL: "null",
    VOID: "void",
}
OUTCOME = {"positive": POSITIVE, "negative": NEGATIVE, "null": NULL, "void": VOID}

# What an arm is for → marker and colour; the colour only repeats the shape.
ARMS = {"baseline": ("o", INK), "candidate": ("D", POSITIVE), "control": ("s", MUTED)}

WIDTH = 8.0  # inches; the page scales it
RC = {
    "svg.hashsalt": "cask-eval",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.left": False,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": False,
}


def figure(height: float) -> Figure:
    """An empty figure. Call it, and draw, inside ``matplotlib.rc_context(RC)``."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def svg(fig: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element to be put into a page; `name` keeps its ids apart from other figures'."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]

    # The page sizes the figure.
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(width|height|version)="[^"]*"', "", opening)
    text = f'{opening} role="img" aria-label="{escape(description)}">{rest}'

    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var(--{variable})")
    return text.strip()


def standalone(svg: str) -> str:
    """The element as a file of its own, in the page's light colours."""
    light = {"ink": "#1c2024", "muted": "#5b636c", "rule": "#d9dde2", "paper": "#fff", "positive": "#0a6e63",
             "negative": "#b3401b", "null": "#4a5968", "void": "#7a5c00"}  # fmt: skip
    opening, rest = svg.split(">", 1)
    for name, colour in light.items():
        rest = rest.replace(f"var(--{name})", colour)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{opening} style="background: {light["paper"]}">{rest}\n'


def wrap(label: str, width: int = 26) -> str:
    """A long name on several lines, broken after `/`, `-`, `_` or `.` where there is one."""
    lines, line = [], ""
    for piece in re.findall(r"[^/\-_. ]*[/\-_. ]?", label):
        while len(piece) > width:
            lines, line, piece = [*lines, *([line] if line else []), piece[:width]], "", piece[width:]
        if len(line) + len(piece) > width:
            lines, line = [*lines, line], ""
        line += piece
    return "\n".join([*lines, line] if line else lines)
