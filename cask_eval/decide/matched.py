"""Whether two arms held equally large caches (docs/DEFINITIONS.md §5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import lcm

from cask_eval.decide.model import Interval, MatchedResult, number
from cask_eval.footprint import Footprint
from cask_eval.protocol.model import MatchedCache
from cask_eval.residency import Residency
from cask_eval.stats.bootstrap import bootstrap_ratio_interval

LEVEL = "0.9"

# Beyond this share of problems without an account, those that have one no longer speak for the cell.
MAX_ABSENT = Fraction(5, 100)


@dataclass(frozen=True)
class Caches:
    """What one arm held in one cell.

    accounts: problem → the accounts of its samples; every registered problem is a key, and one whose trials are
    missing or failed has fewer than `samples`. truncated: trials that met the length cap. prompt: the schedule's
    prompt policy (`ScheduleLock.prompt_policy`). footprint: what the arm's method holds; None, and then no account
    can be judged, where none was frozen.
    """

    samples: int
    accounts: Mapping[str, Sequence[Residency]]
    truncated: int
    prompt: str
    footprint: Footprint | None

    @cached_property
    def judged(self) -> dict[int, str | None]:
        """id of an account → what is wrong with it. Trials of equal lengths may share one account."""
        distinct = {id(a): a for several in self.accounts.values() for a in several}
        return {i: fault(a, self.footprint) for i, a in distinct.items()}

    @cached_property
    def faults(self) -> list[str]:
        """One line per account that contradicts itself."""
        named = ((p, self.judged[id(a)]) for p, several in self.accounts.items() for a in several)
        return [f"{p}: {found}" for p, found in named if found]

    @cached_property
    def sound(self) -> dict[str, list[Residency]]:
        """The accounts without a fault."""
        return {p: [a for a in several if not self.judged[id(a)]] for p, several in self.accounts.items()}

    @cached_property
    def every(self) -> list[Residency]:
        return [a for several in self.sound.values() for a in several]

    @cached_property
    def means(self) -> dict[str, Fraction]:
        """C_x of each problem whose samples all left a sound account, averaged over the samples."""
        own = {id(a): a.mean for a in self.every}
        whole = {p: several for p, several in self.sound.items() if len(several) == self.samples}
        return {p: mean([own[id(a)] for a in several]) for p, several in whole.items()}

    @property
    def peak(self) -> Fraction:
        return max((a.peak for a in self.every), default=Fraction(0))

    @property
    def active(self) -> Fraction | None:
        """Share of trials with at least one event; None without trials."""
        return Fraction(sum(1 for a in self.every if a.active), len(self.every)) if self.every else None


def mean(values: Sequence[Fraction]) -> Fraction:
    """Exact mean; one common denominator, because adding hundreds of fractions one by one is slow."""
    common = lcm(*(v.denominator for v in values))
    return Fraction(sum(v.numerator * (common // v.denominator) for v in values), common * len(values))


def fault(account: Residency, footprint: Footprint | None) -> str | None:
    """What is wrong with an account, None when its numbers are those that its events, or its chains, give."""
    if footprint is None:
        return "what its method holds was never frozen"
    if min(account.layers, account.kv_heads, account.entry_bytes) < 1:
        return "it has no layers, heads or bytes per entry"
    try:
        again = account.again(footprint)
    except ValueError as error:
        return str(error)
    for name in (f.name for f in fields(Residency)):
        stated, given = getattr(account, name), getattr(again, name)
        if stated != given:
            part = "chains that contradict themselves" if name == "chains" else f"{stated} {name}, but {given} follow"
            return f"it states {part}"
    return None if account.mean > 0 else "nothing was resident"


def compare(
    baseline: Caches,
    candidate: Caches,
    difference: Fraction,
    rule: MatchedCache,
    seed: int,
    *,
    better: str = "more accurate",
) -> MatchedResult:
    """The candidate's cache against the baseline's; `ratio` is mean C_x over mean C_x of the comparable problems.

    Matched: ratio within 1 ± tolerance and its paired-bootstrap 90 % interval within 1 ± interval_tolerance.
    Tolerated: outside on one side only, and that side is against the claim: the `better` arm, as it is called (the
    candidate where `difference` is positive), used less. Void otherwise, and for each of: self-contradictory
    accounts; too many problems without one; peak, inactive share, cap hits and prompt policies beyond the rule.
    `ratio` and the interval's ends are empty when no problem can be compared. Caches must list the same problems.
    """
    void = [*_account_faults(baseline, candidate), *_condition_faults(baseline, candidate, rule)]
    common = [p for p in baseline.means if p in candidate.means]
    if not common:
        void.append("no problem has a residency account in both arms")
        return MatchedResult(verdict="void", ratio="", interval=Interval(level=LEVEL, low="", high=""), reasons=void)

    ours, theirs = [candidate.means[p] for p in common], [baseline.means[p] for p in common]
    ratio = mean(ours) / mean(theirs)
    low, high = (number(v) for v in bootstrap_ratio_interval(ours, theirs, Fraction(LEVEL), seed))
    verdict, reason = _verdict(ratio, low, high, difference, rule, better)
    reasons = [*void, *([reason] if reason else [])]
    return MatchedResult(
        verdict="void" if void else verdict,
        ratio=number(ratio),
        interval=Interval(level=LEVEL, low=low, high=high),
        reasons=reasons,
    )


def _verdict(
    ratio: Fraction, low: str, high: str, difference: Fraction, rule: MatchedCache, better: str
) -> tuple[str, str]:
    near, wide = Fraction(rule.tolerance), Decimal(rule.interval_tolerance)
    less = ratio < 1 - near or Decimal(low) < 1 - wide
    more = ratio > 1 + near or Decimal(high) > 1 + wide
    if not less and not more:
        return "matched", ""
    found = (
        f"cache ratio {number(ratio)} [{low}, {high}] is not within ±{rule.tolerance} "
        f"(interval ±{rule.interval_tolerance})"
    )
    if less and more:
        return "void", f"{found}; it may be off in either direction"
    if difference == 0:
        equal = "equal accuracies" if better == "more accurate" else "no difference"
        return "void", f"{found}; with {equal} no direction is against the claim"
    if less == (difference > 0):
        return "tolerated", f"{found}, but the {better} arm held less, which is against the claim"
    return "void", f"{found}, and the {better} arm held more"


def _account_faults(baseline: Caches, candidate: Caches) -> Iterable[str]:
    for name, arm in (("baseline", baseline), ("candidate", candidate)):
        if arm.faults:
            yield f"{name}: {len(arm.faults)} residency accounts contradict themselves, first {arm.faults[0]}"
    shapes = {(a.layers, a.kv_heads, a.entry_bytes) for arm in (baseline, candidate) for a in arm.every}
    if len(shapes) > 1:
        yield f"the accounts disagree on (layers, KV heads, entry bytes): {sorted(shapes)}"
    absent = sum(1 for p in baseline.accounts if p not in baseline.means or p not in candidate.means)
    if absent > MAX_ABSENT * len(baseline.accounts):
        yield (
            f"{absent} of {len(baseline.accounts)} problems lack a residency account in an arm, "
            f"more than {float(MAX_ABSENT):.0%}"
        )


def _condition_faults(baseline: Caches, candidate: Caches, rule: MatchedCache) -> Iterable[str]:
    if baseline.prompt != candidate.prompt and rule.prompt_policies == "same":
        yield f"prompt policies differ: baseline {baseline.prompt!r}, candidate {candidate.prompt!r}"
    if candidate.peak > Fraction(rule.peak_ratio) * baseline.peak:
        yield (
            f"candidate's peak {number(candidate.peak)} exceeds {rule.peak_ratio} × the baseline's "
            f"{number(baseline.peak)}"
        )
    for name, arm in (("baseline", baseline), ("candidate", candidate)):
        if arm.active is not None and arm.active < Fraction(rule.min_active):
            yield f"{name}: only {number(arm.active)} of the trials were compressed, fewer than {rule.min_active}"
    if not baseline.accounts:
        return
    hits = [Fraction(arm.truncated, len(arm.accounts) * arm.samples) for arm in (baseline, candidate)]
    if abs(hits[1] - hits[0]) > Fraction(rule.max_cap_gap):
        yield (
            f"shares of trials at the length cap differ by more than {rule.max_cap_gap}: baseline "
            f"{number(hits[0])}, candidate {number(hits[1])}"
        )
