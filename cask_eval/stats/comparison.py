"""Paired outcomes → tests, intervals and joint adjustment, for any table of pairs.

The primary test of every row is the sign-flip test: it is exact for right answers, counts and real values alike, and
has a joint form, max-T. Bonferroni and Holm adjust the same p-values. The family is every row there is; a row without
pairs stays in it with p = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt

from cask_eval.stats._checks import Alternative
from cask_eval.stats.bootstrap import B, percentile_interval
from cask_eval.stats.max_t import max_t
from cask_eval.stats.multiplicity import bonferroni, holm
from cask_eval.stats.off_lattice import bootstrap_interval, bootstrap_p, sign_flip_reals
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.procedures import p_values
from cask_eval.stats.t_interval import t_interval, t_test
from cask_eval.stats.table import Paired
from cask_eval.stats.tango import tango_interval, tango_test

Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One metric of one candidate in one cell; numbers that need pairs are None where there are none.

    difference: candidate minus baseline; nothing is assumed of which is better. standard_error: √(Σ(d − d̄)²)/n. p: by
    procedure, ``sign_flip`` first. intervals: by name, at the level asked for. exact: whether p["sign_flip"] is, rather
    than estimated from random sign patterns.
    """

    paired: Paired
    n: int
    wins: int
    losses: int
    ties: int
    baseline_mean: float | None
    candidate_mean: float | None
    difference: float | None
    standard_error: float | None
    p: dict[str, float]
    intervals: dict[str, Interval]
    exact: bool


@dataclass(frozen=True)
class Adjusted:
    """Adjusted sign-flip p of every row, in order. joint_exact: whether max-T looked at every sign pattern."""

    bonferroni: list[float]
    holm: list[float]
    max_t: list[float]
    joint_exact: bool


def compare(
    paired: Paired,
    level: Fraction,
    alternative: Alternative = "two-sided",
    *,
    seed: int = 0,
    replicates: int = B,
) -> Row:
    """Everything about one row. Columns on a lattice use the exact procedures, others the off-lattice ones.

    Raises ValueError on a level outside (0, 1), an unknown alternative, or too few replicates for the level.
    """
    differences, n = paired.differences, len(paired.keys)
    if not n:
        return Row(paired, 0, 0, 0, 0, None, None, None, None, {}, {}, True)
    drawn = {"seed": seed, "replicates": replicates}
    p, exact = sign_flip_reals(differences, alternative, **drawn)
    if paired.metric.unit is not None:
        others, intervals = _on_lattice(paired, level, alternative)
    else:
        others = {"paired_bootstrap": bootstrap_p(differences, alternative, **drawn)}
        intervals = {"percentile": bootstrap_interval(differences, level, **drawn)}
        if n > 1:
            others["t_test"] = t_test(differences, alternative)
            intervals["t"] = t_interval(differences, level)
    mean = sum(differences) / n
    return Row(
        paired,
        n,
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        ties=sum(d == 0 for d in differences),
        baseline_mean=float(sum(paired.baseline) / n),
        candidate_mean=float(sum(paired.candidate) / n),
        difference=float(mean),
        standard_error=sqrt(sum((d - mean) ** 2 for d in differences)) / n,
        p={"sign_flip": p, **others},
        intervals=intervals,
        exact=exact,
    )


def adjust(
    rows: Sequence[Row], alternative: Alternative = "two-sided", *, seed: int = 0, replicates: int = B
) -> Adjusted:
    """Adjustment over all rows together. Problems are the same problem where their keys are equal, and then share one
    sign in every row. max-T is step-down, and never below the row's own p."""
    p = [row.p.get("sign_flip") for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row.paired.keys))
    cells = []
    for row in rows:
        found = dict(zip(row.paired.keys, row.paired.differences))
        cells.append([found.get(key, 0) for key in keys] if row.n else None)
    joint = max_t(cells, alternative, seed=seed, replicates=replicates)
    return Adjusted(
        bonferroni(p),
        holm(p),
        [max(a, own if own is not None else 1.0) for a, own in zip(joint.step_down, p)],
        joint.enumerated,
    )


def _on_lattice(paired: Paired, level: Fraction, alternative: Alternative):
    unit, differences = paired.metric.unit, paired.differences
    steps = [int(d / unit) for d in differences]
    samples = 1 if paired.metric.binary else max(1, *map(abs, steps))
    pairs = Pairs.from_differences(steps, samples)
    others = p_values(pairs, alternative)
    # Pairs count in samples; the column counts in its own unit.
    low, high = percentile_interval(pairs, level)
    intervals = {"percentile": (float(low * samples * unit), float(high * samples * unit))}
    if paired.metric.binary:
        others["tango_score"] = tango_test(pairs, alternative)
        intervals["tango"] = tango_interval(pairs, level)
    return {name: value for name, value in others.items() if name != "sign_flip"}, intervals
