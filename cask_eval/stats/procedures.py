"""The tests a protocol can register, by name."""

from __future__ import annotations

from collections.abc import Callable

from cask_eval.stats._checks import Alternative
from cask_eval.stats.bootstrap import paired_bootstrap
from cask_eval.stats.mcnemar import mcnemar_exact, mcnemar_midp
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.sign_flip import sign_flip

Procedure = Callable[[Pairs, Alternative], float]

PROCEDURES: dict[str, Procedure] = {
    "paired_bootstrap": paired_bootstrap,
    "mcnemar_exact": mcnemar_exact,
    "mcnemar_midp": mcnemar_midp,
    "sign_flip": sign_flip,
}

#: These need one sample per problem.
BINARY_ONLY = frozenset({"mcnemar_exact", "mcnemar_midp"})


def p_values(pairs: Pairs, alternative: Alternative) -> dict[str, float]:
    """p of every procedure that applies to `pairs`, by name. With one sample per problem sign_flip is mcnemar_exact,
    to the last digit, and is left out."""
    left_out = {"sign_flip"} if pairs.samples == 1 else BINARY_ONLY
    return {name: test(pairs, alternative) for name, test in PROCEDURES.items() if name not in left_out}


def fewest_discordant(procedure: str, n: int, alpha: float, alternative: Alternative) -> int | None:
    """The smallest number of discordant problems, all in one direction, whose p reaches `alpha`; None if no number
    up to n does. One sample per problem. Raises KeyError on an unknown procedure."""
    test = PROCEDURES[procedure]
    for d in range(n + 1):
        pairs = Pairs.binary(n, 0, d) if alternative == "less" else Pairs.binary(n, d, 0)
        if test(pairs, alternative) <= alpha:
            return d
    return None
