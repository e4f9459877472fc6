"""The pictures of a folder of replays, in the report's style: fidelity against memory, crossings, where along the
output a method loses, and which positions of one trial are kept for how long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cask_eval.fidelity import AFTER, ENDPOINTS
from cask_eval.replay.frontier import Frontier, Point
from cask_eval.replay.records import CEILING
from cask_eval.report import style
from cask_eval.stats.frontier import Contrast

# Methods are told apart by marker first; colours come again after five, with broken lines.
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
COLOURS = (style.INK, style.POSITIVE, style.NEGATIVE, style.VOID, style.NULL)

#: A loss that spans more than this factor is drawn on a logarithmic scale.
WIDE = 20

NAMES = {
    "top1": "top-1 rate",
    "top5": "top-5 rate",
    "nll": "NLL, nats a token",
    "kl": "KL to the full cache, nats a token",
}


def title(metric: str) -> str:
    """What a metric is called on an axis."""
    base = metric.removesuffix("_after")
    return NAMES[base] + (", tokens after the first event" if base != metric else "")


def frontier(found: Frontier) -> str:
    """Fidelity against realised mean cache, a line for each method, with 95 % intervals; the ceiling across."""
    import matplotlib

    arms = list(dict.fromkeys(p.arm for p in found.points if p.arm != CEILING))
    (ceiling,) = (p for p in found.points if p.arm == CEILING)
    with matplotlib.rc_context(style.RC):
        fig = style.figure(3.8)
        ax = fig.subplots()
        ax.axhspan(ceiling.low, ceiling.high, color=style.RULE, alpha=0.6, linewidth=0, zorder=0)
        ax.axhline(ceiling.mean, color=style.MUTED, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        ax.annotate(
            "full cache", (0, ceiling.mean), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="left", fontsize=7.5, color=style.MUTED,
        )  # fmt: skip
        for i, arm in enumerate(arms):
            own = sorted((p for p in found.points if p.arm == arm), key=lambda p: p.cache)
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            x, y = [p.cache for p in own], [p.mean for p in own]
            low, high = ([abs(getattr(p, end) - p.mean) for p in own] for end in ("low", "high"))
            ax.errorbar(
                x, y, (low, high), color=colour, marker=marker, markersize=5, linewidth=1.1, elinewidth=0.9, capsize=0,
                linestyle="--" if i >= len(COLOURS) else "-", label=arm, zorder=3,
            )  # fmt: skip
        low, high = min(p.low for p in found.points), max(p.high for p in found.points)
        if not ENDPOINTS[found.question.metric.removesuffix(AFTER)] and low > 0 and high > WIDE * low:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        ax.set_xlabel("mean resident entries per layer and head, over the trial")
        ax.set_ylabel(title(found.question.metric))
        ax.grid(zorder=0)
        ax.margins(x=0.06)
        ax.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        said = "; ".join(f"{_name(p)} cache {p.cache:.1f} value {p.mean:.4f}" for p in found.points)
        return style.svg(fig, "frontier", f"{title(found.question.metric)} against mean cache. {said}.")


def crossings(found: Sequence[Contrast]) -> str:
    """The advantage of each smaller budget over a larger one, with its interval; filled where Holm rejects at 5 %."""
    import matplotlib

    with matplotlib.rc_context(style.RC):
        fig = style.figure(0.9 + 0.24 * len(found))
        ax = fig.subplots()
        ax.axvline(0, color=style.MUTED, linewidth=1, zorder=1)
        for y, c in enumerate(found):
            shown = c.adjusted <= 0.05
            colour = style.POSITIVE if shown else style.NULL
            ax.plot([c.low, c.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="butt", zorder=2)
            face = colour if shown else style.PAPER
            ax.plot(c.difference, y, marker="s", markersize=5, color=colour, markerfacecolor=face, zorder=3)
        ax.set_yticks(range(len(found)), [f"{c.first}@{c.one} over {c.second}@{c.other}" for c in found])
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.set_xlabel("advantage of the smaller budget; right of 0 it is better")
        ax.grid(axis="x", zorder=0)
        said = "; ".join(f"{c.first}@{c.one} over {c.second}@{c.other}: {c.difference:+.4f}" for c in found)
        return style.svg(fig, "crossings", f"Crossings of budgets. {said}.")


def positions(name: str, lost: Sequence[np.ndarray], events: Sequence[Sequence[int]], width: int = 8) -> str:
    """NLL against the ceiling's by token, averaged over the trials that get so far, in bins of `width` tokens; below, a
    tick for each event of each trial. lost: nats [T] by trial; events: after which token."""
    import matplotlib

    longest = max(len(x) for x in lost)
    edges = np.arange(0, longest + width, width)
    middles, means, errors = [], [], []
    for a, b in zip(edges, edges[1:]):
        some = np.array([x[a:b].mean() for x in lost if len(x) > a])
        middles.append((a + min(b, longest)) / 2)
        means.append(some.mean())
        errors.append(some.std(ddof=1) / np.sqrt(len(some)) if len(some) > 1 else np.nan)
    x, mean, error = (np.array(v) for v in (middles, means, errors))
    with matplotlib.rc_context(style.RC):
        fig = style.figure(3.4)
        ax, rug = fig.subplots(2, 1, sharex=True, height_ratios=(6, 1))
        ax.axhline(0, color=style.MUTED, linewidth=1, zorder=1)
        ax.fill_between(x, mean - error, mean + error, color=style.NEGATIVE, alpha=0.25, linewidth=0, zorder=2)
        ax.plot(x, mean, color=style.NEGATIVE, linewidth=1.3, zorder=3)
        ax.set_ylabel("NLL minus the ceiling's, nats")
        ax.grid(zorder=0)
        for row, own in enumerate(events):
            rug.plot(own, [row] * len(own), linestyle="none", marker="|", markersize=3, color=style.INK, alpha=0.6)
        rug.set_yticks([])
        rug.set_ylabel("events", rotation=0, ha="right", va="center")
        rug.set_xlabel("token of the output")
        worst = f"most at token {x[np.nanargmax(mean)]:.0f}, {np.nanmax(mean):+.3f} nats"
        return style.svg(fig, f"positions-{name}", f"{name}: NLL lost by token of the output, {worst}.")


def keep_map(name: str, kept: np.ndarray, prompt: int, at: Sequence[int]) -> str:
    """Which positions are still there after each event. kept: [events, positions], the share of layers and heads that
    hold an entry, NaN where there is none yet; prompt: its length; at: the token after which each event came."""
    import matplotlib

    with matplotlib.rc_context(style.RC):
        fig = style.figure(3.6)
        ax = fig.subplots()
        image = ax.pcolormesh(
            np.arange(kept.shape[1] + 1), np.arange(kept.shape[0] + 1), np.ma.masked_invalid(kept), cmap="Greys",
            vmin=0, vmax=1, rasterized=True,
        )  # fmt: skip
        ax.axvline(prompt, color=style.NEGATIVE, linewidth=1)
        ax.annotate("prompt ends", (prompt, 0), (3, 3), textcoords="offset points", fontsize=7.5, color=style.NEGATIVE)
        ax.set_ylim(kept.shape[0], 0)
        step = max(1, kept.shape[0] // 12)
        ax.set_yticks(np.arange(0, kept.shape[0], step) + 0.5, [str(t) for t in list(at)[::step]])
        ax.set_ylabel("event, after token")
        ax.set_xlabel("position")
        bar = fig.colorbar(image, ax=ax, pad=0.01)
        bar.set_label("share of layers and heads that keep it", color=style.INK)
        bar.outline.set_visible(False)
        held = np.nanmean(kept[-1]) if len(kept) else 0
        return style.svg(fig, f"keep-{name}", f"{name}: entries kept after each event; {held:.0%} in the end.")


def _name(p: Point) -> str:
    return f"{p.arm}@{p.budget}" if p.budget else p.arm
