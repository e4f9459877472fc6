"""Every procedure for one binary comparison, by name."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, get_args

from cask_eval.stats._checks import Alternative, check_binary, check_inside
from cask_eval.stats.bootstrap import percentile_interval
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.procedures import PROCEDURES
from cask_eval.stats.tango import non_inferiority, tango_interval, tango_test, tango_z

#: Below this many problems that differ, the bootstrap rejects more often than its level.
FEW_DISCORDANT = 20


def summarise(
    pairs: Pairs, alpha: Fraction, level: Fraction | None = None, margin: Fraction | None = None
) -> dict[str, Any]:
    """What there is to say about one binary comparison, ready for JSON.

    A test's name holds its three p-values: ``two_sided``, ``greater`` (small when the candidate is better) and
    ``less``. An interval's holds its ends at `level`, 1 − alpha when None. ``non_inferiority`` is None without a
    margin. Raises ValueError unless K = 1 and alpha, level and margin lie between 0 and 1.
    """
    check_binary("summarise", pairs.samples)
    check_inside("alpha", float(alpha), 0, 1)
    level = 1 - alpha if level is None else level
    return {
        "n": pairs.n,
        "wins": pairs.wins,
        "losses": pairs.losses,
        "ties": pairs.ties,
        "difference": float(pairs.difference),
        "standard_error": pairs.standard_error,
        "alpha": float(alpha),
        **{name: _sides(test, pairs) for name, test in PROCEDURES.items()},
        "tango_score": {"z": tango_z(pairs), **_sides(tango_test, pairs)},
        "percentile_interval": _interval(percentile_interval, pairs, level),
        "tango_interval": _interval(tango_interval, pairs, level),
        "non_inferiority": _non_inferiority(pairs, alpha, margin),
        "notes": list(_notes(pairs)),
    }


def _sides(test, pairs: Pairs) -> dict[str, float]:
    return {a.replace("-", "_"): test(pairs, a) for a in get_args(Alternative)}


def _interval(interval, pairs: Pairs, level: Fraction) -> dict[str, float]:
    low, high = interval(pairs, level)
    return {"level": float(level), "low": float(low), "high": float(high)}


def _non_inferiority(pairs: Pairs, alpha: Fraction, margin: Fraction | None) -> dict[str, Any] | None:
    if margin is None:
        return None
    z, p = non_inferiority(pairs, margin)
    # The interval whose lower end the test compares with −margin.
    return {"margin": float(margin), "z": z, "p": p, "interval": _interval(tango_interval, pairs, 1 - 2 * alpha)}


def _notes(pairs: Pairs):
    differ = pairs.wins + pairs.losses
    if differ < FEW_DISCORDANT:
        yield (
            f"{differ} problems differ, fewer than {FEW_DISCORDANT}: the paired bootstrap then rejects more often than "
            "its level; the exact tests do not"
        )
