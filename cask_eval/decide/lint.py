"""What is questionable about a protocol before it is locked: branches that cannot be, power that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, sqrt
from statistics import NormalDist
from typing import Literal

from cask_eval.canonical import canonical
from cask_eval.decide.branches import check, decide
from cask_eval.protocol.model import Protocol
from cask_eval.stats.power import connor_sample_size, exact_power, expected_discordant, mde
from cask_eval.stats.procedures import fewest_discordant

ASSUMED_DISCORDANCE = "0.2"
FEWEST_EXPECTED = 20
POWER = 0.8

# A harm this large should not slip through unseen when the protocol does not say what it expects.
NOTICEABLE_HARM = 0.05


@dataclass(frozen=True)
class Finding:
    """One fault (`error`: do not register) or weakness (`warning`), where it is, and what to do about it."""

    level: Literal["error", "warning"]
    field: str
    message: str


def lint(protocol: Protocol, heldout_count: int | None) -> list[Finding]:
    """Findings, errors first. Without the number of held-out problems the power checks are left out."""
    found = [*_branches(protocol), *_candidates(protocol), *_levels(protocol)]
    if protocol.fidelity:
        found += [*_unused(protocol), *_no_veto(protocol)]
    elif heldout_count:
        for rule in (_discordance, _effect, _veto, _margin):
            found += rule(protocol, heldout_count)
    return sorted(found, key=lambda f: f.level != "error")


def describe_power(protocol: Protocol, n: int) -> str:
    """One line for `register`: the smallest true difference this study finds four times out of five."""
    level = level_per_comparison(protocol)
    if protocol.fidelity:
        # A z-test of the mean difference: how much its problems differ is not known beforehand.
        tail = level / (2 if protocol.test.alternative == "two-sided" else 1)
        least = (NormalDist().inv_cdf(1 - tail) + NormalDist().inv_cdf(POWER)) / sqrt(n)
        return (
            f"each {_unit(protocol)} (n = {n}, level {level:.4g}, {protocol.test.alternative}) detects a mean "
            f"improvement in {protocol.test.endpoint} of {least:.2g} standard deviations of the paired differences "
            "with 80 % power"
        )
    smallest = mde(n, float(discordance_of(protocol)), level, POWER, protocol.test.alternative)
    found = f"detects {points(smallest)} with 80 % power" if smallest else "detects no difference with 80 % power"
    return (
        f"each {_unit(protocol)} (n = {n}, level {level:.4g}, {protocol.test.alternative}) {found} "
        f"by exact McNemar at {_stated(protocol)}"
    )


def level_per_comparison(protocol: Protocol) -> float:
    """alpha, shared out over the registered family when the correction does so."""
    family = protocol.family if protocol.test.correction != "none" else 1
    return float(Decimal(protocol.test.alpha) / family)


def points(difference: float) -> str:
    """A difference in accuracy in percentage points, rounded up to a tenth."""
    return f"{ceil(round(difference * 1000, 6)) / 10:g} points"


def _branches(protocol: Protocol) -> Iterable[Finding]:
    problems = check(protocol.branches, protocol.family)
    for problem in problems:
        yield Finding("error", "branches", problem)
    if not problems and not any(b.when and b.when.void_cells for b in protocol.branches):
        branch = decide(protocol.branches, (0, 0, protocol.family, 0))
        yield Finding(
            "warning",
            "branches",
            f"no branch looks at void_cells, so a study whose caches cannot be compared ends in branch {branch.name}, "
            f"{branch.decision}, as if something had been found; add a branch for it",
        )


def _candidates(protocol: Protocol) -> Iterable[Finding]:
    several = len(protocol.candidates)
    if several > 1 and protocol.screening is None:
        yield Finding(
            "warning",
            "screening",
            f"all {several} candidates are confirmed, and each of the {protocol.family} comparisons is tested at "
            f"{level_per_comparison(protocol):.3g}; let a screening rule choose the ones worth the held-out split",
        )
    seen: dict[str, str] = {}
    for candidate in protocol.candidates:
        made = canonical(candidate.model_dump(exclude={"name"})).decode()
        if first := seen.get(made):
            yield Finding(
                "warning", "candidates", f"{first} and {candidate.name} are the same method; leave one of them out"
            )
        seen.setdefault(made, candidate.name)


def _levels(protocol: Protocol) -> Iterable[Finding]:
    test, m, level = protocol.test, protocol.family, level_per_comparison(protocol)
    alpha, veto = float(test.alpha), float(test.veto.alpha)
    if alpha > 0.1:
        yield Finding("warning", "test.alpha", f"a level of {test.alpha} convinces few readers; use 0.05 or less")
    if test.correction == "none" and m > 1:
        yield Finding(
            "warning",
            "test.correction",
            f"{m} {_unit(protocol)}s are tested without correction: some {_unit(protocol)} comes out "
            f"positive by chance with probability up to {1 - (1 - alpha) ** m:.2g}; use bonferroni",
        )
    if veto < level:
        yield Finding(
            "warning",
            "test.veto.alpha",
            f"harm must reach {test.veto.alpha}, but success only "
            f"{level:.4g} per {_unit(protocol)}; set the veto's level to {test.alpha} or more",
        )
    if veto > 0.2:
        yield Finding(
            "warning",
            "test.veto.alpha",
            f"at {test.veto.alpha} a {_unit(protocol)} without any harm vetoes too often; use 0.2 or less",
        )
    matched = protocol.matched_cache
    if Decimal(matched.interval_tolerance) < Decimal(matched.tolerance):
        yield Finding(
            "warning",
            "matched_cache.interval_tolerance",
            f"the interval must stay within "
            f"{matched.interval_tolerance}, but its centre may be off by {matched.tolerance}; "
            "set it to at least the tolerance",
        )


def _discordance(protocol: Protocol, n: int) -> Iterable[Finding]:
    test, level = protocol.test, level_per_comparison(protocol)
    expected = expected_discordant(n, float(discordance_of(protocol)))
    needed = fewest_discordant(test.procedure, n, level, test.alternative)
    stated = f"the arms should differ on about {expected:.3g} of {n} at {_stated(protocol)}"
    if needed is None:
        yield Finding(
            "warning",
            "task.heldout",
            f"no result can be positive: even if the candidate won all {n} "
            f"problems, {test.procedure} would not reach {level:.4g}; use more problems or fewer "
            f"{'cells' if len(protocol.candidates) == 1 else 'cells and survivors'}",
        )
    elif expected < needed:
        yield Finding(
            "warning",
            "task.heldout",
            f"a positive {_unit(protocol)} is unlikely: {test.procedure} needs at least "
            f"{needed} problems that differ to reach {level:.4g}, but {stated}; use more problems",
        )
    elif expected < FEWEST_EXPECTED:
        remedy = f"use at least {ceil(FEWEST_EXPECTED / float(discordance_of(protocol)) - 1e-9)} problems"
        if test.procedure == "paired_bootstrap":
            yield Finding(
                "warning",
                "test.procedure",
                f"{stated}, below {FEWEST_EXPECTED}: there the paired "
                f"bootstrap rejects more often than its level; {remedy}, or mcnemar_exact with one sample",
            )
        else:
            yield Finding(
                "warning", "task.heldout", f"{stated}, below {FEWEST_EXPECTED}: little can be concluded; {remedy}"
            )


def _effect(protocol: Protocol, n: int) -> Iterable[Finding]:
    if protocol.expected_effect is None:
        return
    test, effect, q = protocol.test, float(protocol.expected_effect), float(discordance_of(protocol))
    if effect <= 0:
        yield Finding(
            "warning",
            "expected_effect",
            f"{protocol.expected_effect} is no gain, but a {_unit(protocol)} is positive "
            "only when the candidate is ahead; exchange the arms or state the gain",
        )
        return
    if effect > q:
        yield Finding(
            "warning",
            "expected_effect",
            f"a difference of {protocol.expected_effect} needs at least that "
            f"share of problems to differ, which is more than {_stated(protocol)} allows; correct "
            "expected_effect or expected_discordance",
        )
        return
    level = level_per_comparison(protocol)
    smallest = mde(n, q, level, POWER, test.alternative)
    if smallest is None or effect < smallest:
        power = exact_power(n, q, effect, level, test.alternative)
        needed = connor_sample_size(effect, q, level, POWER, test.alternative)
        found = f"detects only {points(smallest)} or more" if smallest else "detects nothing"
        yield Finding(
            "warning",
            "expected_effect",
            f"{points(effect)} are expected, but a {_unit(protocol)} of {n} problems "
            f"{found} with 80 % power (level {level:.4g}, {_stated(protocol)}); its power is {power:.0%}; "
            f"use about {needed} problems",
        )


def _unused(protocol: Protocol) -> Iterable[Finding]:
    for field in ("expected_effect", "expected_discordance"):
        if getattr(protocol, field) is not None:
            yield Finding(
                "warning",
                field,
                f"is about right answers and changes nothing with test.endpoint {protocol.test.endpoint}; leave it out",
            )


def _no_veto(protocol: Protocol) -> Iterable[Finding]:
    looked = [b.when for b in protocol.branches if b.when]
    if protocol.test.non_inferiority and any(when.non_inferior_cells for when in looked):
        return  # the branches ask for evidence that there is no harm, which is more than no evidence of harm
    if not any(when.negative_cells for when in looked):
        yield Finding(
            "warning",
            "branches",
            "no branch looks at negative_cells, so harm changes nothing; add a branch for it",
        )


def _veto(protocol: Protocol, n: int) -> Iterable[Finding]:
    test = protocol.test
    if found := list(_no_veto(protocol)):
        yield from found
        return
    if test.non_inferiority and any(b.when and b.when.non_inferior_cells for b in protocol.branches):
        return
    harm = abs(float(protocol.expected_effect or 0)) or NOTICEABLE_HARM
    q = float(discordance_of(protocol))
    smallest = mde(n, q, float(test.veto.alpha), POWER, "greater")
    if smallest is None or smallest > harm:
        seen = exact_power(n, q, -min(harm, q), float(test.veto.alpha), "less")
        yield Finding(
            "warning",
            "test.veto.alpha",
            f"a true loss of {points(min(harm, q))} makes a {_unit(protocol)} negative with "
            f'probability {seen:.0%} only, so "no negative {_unit(protocol)}" does not show that there is no harm; '
            "register test.non_inferiority with a margin and let a branch ask for non_inferior_cells, or use more "
            "problems or a larger veto level",
        )


def _margin(protocol: Protocol, n: int) -> Iterable[Finding]:
    rule = protocol.test.non_inferiority
    if rule is None:
        return
    if not any(b.when and b.when.non_inferior_cells for b in protocol.branches):
        yield Finding("warning", "branches", "no branch looks at non_inferior_cells, so the margin changes nothing")
    normal, q = NormalDist(), float(discordance_of(protocol))
    # With no true difference the score test is close to a z-test of the difference, whose variance is q/n.
    least = (normal.inv_cdf(1 - float(rule.alpha)) + normal.inv_cdf(POWER)) * sqrt(q / n)
    if float(rule.margin) < least:
        yield Finding(
            "warning",
            "test.non_inferiority.margin",
            f"a candidate that is just as good is shown to be within {points(float(rule.margin))} in fewer than 80 % "
            f"of studies (n = {n}, {_stated(protocol)}); that takes a margin of {points(least)}, or "
            f"{ceil(n * (least / float(rule.margin)) ** 2)} problems",
        )


def _unit(protocol: Protocol) -> str:
    """What a protocol counts: with one candidate every comparison is a cell."""
    return "cell" if len(protocol.candidates) == 1 else "comparison"


def discordance_of(protocol: Protocol) -> str:
    """The registered expectation, or what is assumed in its place."""
    # 0 would make every formula void; a protocol that expects no flips expects nothing to be found.
    given = protocol.expected_discordance
    return given if given is not None and Decimal(given) > 0 else ASSUMED_DISCORDANCE


def _stated(protocol: Protocol) -> str:
    if protocol.expected_discordance is not None and Decimal(protocol.expected_discordance) > 0:
        return f"discordance {protocol.expected_discordance}"
    given = "is 0" if protocol.expected_discordance is not None else "is not given"
    return f"discordance {ASSUMED_DISCORDANCE}, assumed as expected_discordance {given}"
