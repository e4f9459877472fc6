"""The t interval of a mean difference, and its standard error when problems come in clusters.

For off-lattice endpoints, beside the resampling tests: it assumes that the mean is nearly normal. Miller 2024 ("Adding
error bars to evals", arXiv:2411.00640) asks for paired differences and, where problems are drawn in groups such as
several questions on one text, for clustered standard errors.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from fractions import Fraction
from math import sqrt

import numpy as np

from cask_eval.stats._checks import Alternative, check_alternative, check_inside
from cask_eval.stats.whole import Real


def standard_error(differences: Sequence[Real], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean of differences [n]; clusters [n] names each one's cluster, None makes each its own.

    √(G/(G−1)·Σ_g (Σ_{i∈g} (d_i − d̄))²)/n over G clusters (Liang & Zeger 1986; Miller 2024). With the factor G/(G−1)
    clusters of one give the usual s/√n. Raises ValueError on fewer than two clusters, NaN or infinite differences, and
    unequal lengths.
    """
    values, groups = _columns(differences, clusters)
    count = int(groups.max()) + 1
    sums = np.bincount(groups, weights=values - values.mean())
    return sqrt(count / (count - 1) * float(sums @ sums)) / len(values)


def t_interval(
    differences: Sequence[Real], level: float | Fraction, clusters: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """d̄ ± t·SE with G − 1 degrees of freedom, G clusters. Raises ValueError as `standard_error`, and unless
    0 < level < 1."""
    from scipy.special import stdtrit

    check_inside("level", float(level), 0, 1)
    values, groups = _columns(differences, clusters)
    half = -stdtrit(int(groups.max()), float((1 - level) / 2)) * standard_error(differences, clusters)
    return float(values.mean() - half), float(values.mean() + half)


def t_test(
    differences: Sequence[Real], alternative: Alternative = "two-sided", clusters: Sequence[Hashable] | None = None
) -> float:
    """p of mean 0 by d̄/SE with G − 1 degrees of freedom; 1 where every difference is 0, 0 where all are the same other
    number. Raises ValueError as `standard_error`, and on an unknown alternative."""
    from scipy.special import stdtr

    check_alternative(alternative)
    values, groups = _columns(differences, clusters)
    mean, error = float(values.mean()), standard_error(differences, clusters)
    if mean == 0:
        return 1.0 if alternative == "two-sided" else 0.5
    t = mean / error if error else float("inf") * mean
    side = {"two-sided": -abs(t), "greater": -t, "less": t}[alternative]
    return float(stdtr(int(groups.max()), side)) * (2 if alternative == "two-sided" else 1)


def _columns(differences: Sequence[Real], clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """(values [n], number of each one's cluster [n], from 0)."""
    values = np.array([float(d) for d in differences])
    if not np.isfinite(values).all():
        raise ValueError("a difference is NaN or infinite; leave its pair out or state a rule for it")
    names = range(len(values)) if clusters is None else clusters
    if len(names) != len(values):
        raise ValueError(f"{len(values)} differences and {len(names)} cluster names do not pair up")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(number) < 2:
        raise ValueError(
            f"a standard error needs two {'problems' if clusters is None else 'clusters'}, not {len(number)}"
        )
    return values, np.array([number[name] for name in names])
