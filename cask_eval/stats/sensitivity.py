"""How far a result leans on the trials that left none.

The primary analysis counts them as wrong (intention to treat). Beside it stand the complete problems alone, and the
two extremes: every absent trial gone against the candidate, and every one gone in its favour. Whatever they would have
been, the difference lies between those two (Manski 1990).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cask_eval.stats.pairs import Pairs


@dataclass(frozen=True)
class Sensitivity:
    """The same comparison four times. complete is None when no problem is."""

    as_wrong: Pairs
    complete: Pairs | None
    worst: Pairs
    best: Pairs

    @property
    def changed(self) -> bool:
        """Whether any trial was absent."""
        return self.worst != self.best


def sensitivity(
    baseline: Sequence[int],
    candidate: Sequence[int],
    baseline_absent: Sequence[int],
    candidate_absent: Sequence[int],
    samples: int = 1,
) -> Sensitivity:
    """Right and absent trials of each problem, of either arm, all [n] in the same order; absent ones are not right.

    worst: the baseline's absent trials right, the candidate's wrong; best: the other way round. Raises ValueError on
    unequal lengths, no problem, counts below zero, or more right and absent trials than samples.
    """
    columns = (baseline, candidate, baseline_absent, candidate_absent)
    if len({len(c) for c in columns}) > 1:
        raise ValueError(f"columns have {', '.join(str(len(c)) for c in columns)} problems; they must pair up")
    for right, absent in ((baseline, baseline_absent), (candidate, candidate_absent)):
        for r, a in zip(right, absent):
            if r < 0 or a < 0 or r + a > samples:
                raise ValueError(f"{r} right and {a} absent of {samples} samples cannot be")
    # Which trials are absent may depend on the arm, so the complete problems are a selection; they never decide.
    kept = [i for i, lost in enumerate(zip(baseline_absent, candidate_absent)) if not any(lost)]
    complete = _pairs([baseline[i] for i in kept], [candidate[i] for i in kept], samples) if kept else None
    return Sensitivity(
        as_wrong=_pairs(baseline, candidate, samples),
        complete=complete,
        worst=_pairs([r + a for r, a in zip(baseline, baseline_absent)], candidate, samples),
        best=_pairs(baseline, [r + a for r, a in zip(candidate, candidate_absent)], samples),
    )


def _pairs(baseline: Sequence[int], candidate: Sequence[int], samples: int) -> Pairs:
    return Pairs.from_differences([c - b for b, c in zip(baseline, candidate)], samples)
