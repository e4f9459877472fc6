"""What procedures that were not registered say of the same comparisons. They never decide: each is a function of the
analysis document, so that a reader who has verified that has verified them too."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from cask_eval.canonical import digest
from cask_eval.decide.model import AnalysisDocument, CellResult
from cask_eval.stats._checks import Alternative
from cask_eval.stats.max_t import max_t
from cask_eval.stats.multiplicity import bonferroni, holm
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.power import mde
from cask_eval.stats.tango import tango_interval

POWER = 0.8
CORRECTIONS = ("bonferroni", "holm", "max_t")


@dataclass(frozen=True)
class Beside:
    """One comparison. adjusted: correction → p over the registered family, Bonferroni and Holm of the registered test,
    max-T of the sign-flip test; a void comparison has 1. tango: the score interval at the level of the plain one, None
    for several samples a problem. detects: the smallest difference that exact McNemar finds with 80 % power among so
    many problems, where as many differ as did here, at the level that Bonferroni leaves; None where there is none. Both
    are about right answers, and None for other endpoints."""

    adjusted: dict[str, float]
    tango: tuple[float, float] | None
    detects: float | None


def beside(document: AnalysisDocument) -> list[Beside]:
    """One for each of the document's comparisons, in its order."""
    cells, family = document.cells, document.family
    void = [c.outcome == "void" for c in cells]
    alternative: Alternative = "greater" if document.alternative == "greater" else "two-sided"
    registered = [None if v else float(c.p_registered) for v, c in zip(void, cells)]
    seed = int(digest({"registration": document.registration, "use": "max_t"}).split(":")[1][:32], 16)
    rows = [None if v else row for v, row in zip(void, _differences(cells))]
    adjusted = {
        "bonferroni": bonferroni(registered, family),
        "holm": holm(registered, family),
        "max_t": max_t(rows, alternative, m=family, seed=seed).step_down,
    }
    level = float(Fraction(document.alpha) / max(1, family))
    counted = document.endpoint == "accuracy"
    return [
        Beside(
            {name: adjusted[name][i] for name in CORRECTIONS},
            _tango(c) if counted else None,
            _detects(c, level, alternative) if counted else None,
        )
        for i, c in enumerate(cells)
    ]


def _differences(cells: list[CellResult]) -> list[list[Fraction]]:
    """[cells, problems] improvements over the problems on which any comparison differs; the others flip to themselves.
    Of right answers they are K·d, of other endpoints as printed."""
    flips = [
        {f.problem: Fraction(f.candidate - f.baseline) for f in c.flips}
        | {v.problem: Fraction(v.improvement) for v in c.values}
        for c in cells
    ]
    problems = sorted({problem for found in flips for problem in found}) or [""]  # none differs anywhere: 0 of one
    return [[found.get(problem, Fraction()) for problem in problems] for found in flips]


def _tango(c: CellResult) -> tuple[float, float] | None:
    if c.samples > 1 or not c.n:
        return None
    return tango_interval(Pairs.binary(c.n, c.wins, c.losses), Fraction(c.interval.level))


def _detects(c: CellResult, level: float, alternative: Alternative) -> float | None:
    share = (c.wins + c.losses) / c.n if c.n else 0
    return mde(c.n, share, level, POWER, alternative) if share and c.samples == 1 else None
