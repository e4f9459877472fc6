"""The decision, from the records alone. A pure function: `verify` calls it again and compares digests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from cask_eval.canonical import digest
from cask_eval.decide.arms import ArmTrials, sort_records
from cask_eval.decide.branches import decide
from cask_eval.decide.budgets import footprint_of
from cask_eval.decide.endpoints import Counts, Improvement, Reals, Replays, draws, pair
from cask_eval.decide.exclusion import excluding, left_out, without
from cask_eval.decide.matched import compare
from cask_eval.decide.model import (
    AnalysisDocument,
    ArmResult,
    CellResult,
    Flip,
    Interval,
    MatchedResult,
    NonInferior,
    Outcome,
    PairedValues,
    Screened,
    number,
)
from cask_eval.ledger.events import ArmChoice, Select
from cask_eval.protocol.keys import full_arms
from cask_eval.protocol.model import FULL, Arm, Cell, NonInferiority, Protocol
from cask_eval.records.model import Record
from cask_eval.stats.max_t import max_t
from cask_eval.stats.multiplicity import CORRECTIONS
from cask_eval.stats.sensitivity import sensitivity
from cask_eval.stats.summary import FEW_DISCORDANT


def analyse(
    protocol: Protocol,
    registration: str,
    select: Select,
    records: Iterable[Record],
    problem_ids: Sequence[str],
    *,
    label: Literal["confirmatory", "exploratory"],
) -> AnalysisDocument:
    """Everything the study found, and the branch that follows.

    The unit is the problem: its K samples are summed, arms are paired by problem, and a trial that is missing,
    failed or without a right answer is wrong; for endpoints other than accuracy see `endpoints`. A comparison is one
    surviving candidate in one cell, against the same baseline trials as all others of that cell. The family is
    registered; a comparison that is void, or that was never made because fewer candidates survived than could have,
    stays in it with p = 1. A comparison is positive when its adjusted p is at most `test.alpha` and the candidate is
    ahead, negative when the one-sided p for harm is at most `test.veto.alpha`, uncorrected, and the candidate is
    behind. With `test.non_inferiority` it is also non-inferior, or not. Problems that `exclude` names are no part of a
    comparison, nor of whether its caches match. Numbers are compared as printed, so that a reader can repeat it.
    Controls never decide.

    Raises RecordError on unexpected or repeated records, ValueError when problem ids are empty or repeat, or when more
    candidates survived than the family has room for.
    """
    if not problem_ids or len(set(problem_ids)) != len(problem_ids):
        raise ValueError(f"{len(problem_ids)} problem ids are given; they must be distinct and at least one")
    names = list(protocol.heldout_arms(select.survivors))
    excluded = excluding(protocol.exclude, select.arms)
    trials = sort_records(protocol, registration, records, problem_ids, names, excluded)
    ran = {cell.name: _arms(protocol, select, trials, cell, names) for cell in protocol.cells}
    ran |= {c.name: _arms(protocol, select, trials, c, full_arms("heldout")) for c in protocol.reference_cells}
    survivors = [c.name for c in protocol.candidates if c.name in select.survivors]
    arms: dict[str, dict[str, ArmResult]] = {}
    measured: dict[tuple[str, str], _Found] = {}
    for cell in [*protocol.cells, *protocol.reference_cells]:
        # What is worked out on the way is larger than the trials, and gone with the cell.
        row = ran.pop(cell.name)
        if cell.budget:
            measured |= {(c, cell.name): _measure(protocol, registration, row, cell, c) for c in survivors}
        arms[cell.name] = {name: arm.result() for name, arm in row.items()}
    found = [measured[candidate, cell.name] for candidate in survivors for cell in protocol.cells]

    test, m = protocol.test, protocol.family
    registered = [f.improvement.p(test.procedure, test.alternative) for f in found]
    void = [f.matched.verdict == "void" for f in found]
    if test.correction == "max_t":
        adjusted = _jointly(protocol, registration, found, void, problem_ids)
    else:
        adjusted = CORRECTIONS[test.correction]([None if v else p for v, p in zip(void, registered)], m)
    cells = [_judge(protocol, f, p, a) for f, p, a in zip(found, registered, adjusted)]

    counts = [sum(c.outcome == kind for c in cells) for kind in ("positive", "negative", "void")]
    held = sum(c.non_inferior is not None and c.non_inferior.shown and c.outcome != "void" for c in cells)
    branch = decide(protocol.branches, [*counts, held])
    return AnalysisDocument(
        study=protocol.study,
        hypothesis=protocol.hypothesis,
        registration=registration,
        label=label,
        procedure=test.procedure,
        alternative=test.alternative,
        alpha=test.alpha,
        correction=test.correction,
        family=m,
        screening=[
            Screened(candidate=c.name, gain=_gain(select, c.name), survived=c.name in survivors)
            for c in protocol.candidates
        ],
        cells=cells,
        positive_cells=counts[0],
        negative_cells=counts[1],
        void_cells=counts[2],
        non_inferior_cells=held if test.non_inferiority else None,
        arms=arms,
        branch=branch.name,
        decision=branch.decision,
        notes=[note for f in found for note in _notes(protocol, f)],
        endpoint=test.endpoint,
    )


@dataclass(frozen=True)
class _Arm:
    """One arm in one cell; `choice` is None when the tuning phase froze none for it."""

    trials: ArmTrials
    choice: ArmChoice | None
    registered: Arm
    nominal: int

    def result(self) -> ArmResult:
        """Its numbers. An arm that was not frozen is printed as registered, so that its cell can be."""
        if self.choice is None:
            return self.trials.result(self.registered.preset, self.registered.params, self.nominal)
        return self.trials.result(self.choice.preset, self.choice.params, self.choice.schedule.budget)


@dataclass(frozen=True)
class _Found:
    """One comparison before anything is decided: of the problems that are compared; `excluded` are the others, and
    `with_them` is the difference over all."""

    name: str
    cell: Cell
    candidate: str
    problems: int
    excluded: set[str]
    with_them: Fraction
    improvement: Improvement
    replays: Replays | None
    matched: MatchedResult
    flips: list[Flip]
    leaning: list[str]
    """Notes on how far the difference leans on trials without a result."""


def _arms(protocol: Protocol, select: Select, trials: dict, cell: Cell, names: list[str]) -> dict[str, _Arm]:
    chosen, out = select.arms.get(cell.name, {}), {}
    for name in names:
        choice = chosen.get(name)
        own = ArmTrials(
            protocol.generation.samples,
            trials.pop((cell.name, name)),
            choice.schedule.prompt_policy if choice else "",
            footprint_of(choice) if choice else None,
        )
        out[name] = _Arm(own, choice, protocol.arms.get(name, Arm(preset=FULL)), cell.budget)
    return out


def _measure(protocol: Protocol, registration: str, arms: dict[str, _Arm], cell: Cell, name: str) -> _Found:
    whole = arms["baseline"].trials, arms[name].trials
    excluded = left_out(protocol.exclude, *whole)
    baseline, candidate = (without(arm, excluded) for arm in whole)
    about = {"registration": registration, "cell": cell.name, "candidate": name}
    improvement, replays = _improvement(protocol, baseline, candidate, _seed({**about, "use": "test"}))
    over_all = _improvement(protocol, *whole, 0)[0].difference if excluded else improvement.difference
    seed = _seed({**about, "use": "matched_cache"})
    better = "better" if protocol.fidelity else "more accurate"
    matched = compare(
        baseline.caches, candidate.caches, improvement.difference, protocol.matched_cache, seed, better=better
    )
    lacking = [arm for arm in ("baseline", name) if arms[arm].choice is None]
    reasons = [f"the tuning phase froze no {' and no '.join(lacking)} for this cell"] if lacking else []
    if not baseline.trials:
        reasons.append("every problem is excluded")
    elif not improvement.n:
        reasons.append(f"no problem has {protocol.test.endpoint} in both arms")
    if reasons:
        matched = matched.model_copy(update={"verdict": "void", "reasons": [*reasons, *matched.reasons]})
    return _Found(
        protocol.comparison(name, cell.name),
        cell,
        name,
        len(baseline.trials),
        excluded,
        over_all,
        improvement,
        replays,
        matched,
        [] if replays else list(_flips(baseline.right, candidate.right)),
        [] if replays else list(_sensitivity(improvement, baseline, candidate)),
    )


def _improvement(
    protocol: Protocol, baseline: ArmTrials, candidate: ArmTrials, seed: int
) -> tuple[Improvement, Replays | None]:
    samples, test = protocol.generation.samples, protocol.test
    if not baseline.trials:
        return Reals({}, [], samples, seed), None
    if not protocol.fidelity:
        return Counts([candidate.right[p] - baseline.right[p] for p in baseline.right], samples), None
    found = pair(test.endpoint, baseline.trials, candidate.trials, samples)
    count = draws(Fraction(test.alpha) / (protocol.family if test.correction != "none" else 1))
    return Reals(found.improvements, list(baseline.trials), samples, seed, count), found


def _seed(use: dict[str, str]) -> int:
    """Random draws depend on the registration and on what they are for, and on nothing that could be chosen later."""
    return int(digest(use).split(":")[1][:32], 16)


def _jointly(
    protocol: Protocol, registration: str, found: list[_Found], void: list[bool], problem_ids: Sequence[str]
) -> list[float]:
    rows = []
    for f, v in zip(found, void):
        own = dict(zip((p for p in problem_ids if p not in f.excluded), f.improvement.row))
        # One sign is drawn for a problem in all comparisons; where it is excluded, it flips nothing.
        rows.append(None if v else [own.get(p, Fraction()) for p in problem_ids])
    seed = _seed({"registration": registration, "use": "max_t"})
    return max_t(rows, protocol.test.alternative, m=protocol.family, seed=seed).step_down


def _judge(protocol: Protocol, found: _Found, registered: float, adjusted: float) -> CellResult:
    test, made = protocol.test, found.improvement
    harm = number(made.p(test.procedure, "less"))
    share = Fraction(test.alpha)
    family = protocol.family if test.correction != "none" else 1
    return CellResult(
        candidate=found.candidate,
        cell=found.cell.name,
        model=found.cell.model,
        budget=found.cell.budget,
        n=made.n,
        samples=made.samples,
        wins=made.wins,
        losses=made.losses,
        ties=made.ties,
        difference=number(made.difference),
        standard_error=number(made.standard_error),
        interval=_interval(made, 1 - share),
        interval_adjusted=_interval(made, 1 - share / family),
        p={name: number(p) for name, p in made.tests(test.alternative).items()} if made.n else {test.procedure: "1"},
        p_registered=number(registered),
        p_adjusted=number(adjusted),
        p_veto=harm,
        matched=found.matched,
        outcome=_outcome(made.difference, number(adjusted), harm, found.matched.verdict == "void", protocol),
        flips=found.flips,
        non_inferior=_non_inferior(made, test.non_inferiority) if test.non_inferiority else None,
        values=list(_values(found.replays)) if found.replays else [],
        excluded=len(found.excluded),
    )


def _flips(baseline: dict[str, int], candidate: dict[str, int]) -> Iterable[Flip]:
    for p in baseline:
        if baseline[p] != candidate[p]:
            yield Flip(problem=p, baseline=baseline[p], candidate=candidate[p])


def _values(found: Replays) -> Iterable[PairedValues]:
    for p, (baseline, candidate) in found.means.items():
        improvement = number(found.improvements[p])
        yield PairedValues(
            problem=p, baseline=number(baseline), candidate=number(candidate), improvement=improvement
        )


def _non_inferior(made: Improvement, rule: NonInferiority) -> NonInferior:
    z, p = made.non_inferior(Fraction(rule.margin))
    p = number(p)
    return NonInferior(
        margin=rule.margin,
        alpha=rule.alpha,
        z="" if z is None else number(z),
        p=p,
        shown=Decimal(p) <= Decimal(rule.alpha),
    )


def _outcome(total: Fraction, adjusted: str, harm: str, void: bool, protocol: Protocol) -> Outcome:
    if void:
        return "void"
    if total > 0 and Decimal(adjusted) <= Decimal(protocol.test.alpha):
        return "positive"
    if total < 0 and Decimal(harm) <= Decimal(protocol.test.veto.alpha):
        return "negative"
    return "null"


def _interval(made: Improvement, level: Fraction) -> Interval:
    ends = made.interval(level)
    low, high = ("", "") if ends is None else map(number, ends)
    return Interval(level=number(level), low=low, high=high)


def _gain(select: Select, name: str) -> str:
    return number(Fraction(select.gains[name])) if name in select.gains else ""


def _notes(protocol: Protocol, found: _Found) -> Iterable[str]:
    made, name = found.improvement, found.name
    if found.excluded:
        yield (
            f"{name}: {len(found.excluded)} of {len(found.excluded) + found.problems} problems are "
            f"left out by the registered rule ({', '.join(protocol.exclude.regimes)}); over all of them the difference "
            f"is {number(found.with_them)}"
        )
    differ = made.wins + made.losses
    if protocol.test.procedure == "paired_bootstrap" and differ < FEW_DISCORDANT:
        yield (
            f"{name}: the arms differ on {differ} problems, fewer than {FEW_DISCORDANT}; the paired bootstrap then "
            "rejects more often than its level says, so read the exact tests beside it"
        )
    if found.replays:
        yield from _of_replays(protocol, found, found.replays)
    yield from (f"{name}: {note}" for note in found.leaning)


def _of_replays(protocol: Protocol, found: _Found, replays: Replays) -> Iterable[str]:
    """Which pairs are not there, and how far the difference leans on trials without a result."""
    pairs = found.problems * protocol.generation.samples
    if replays.excluded:
        yield (
            f"{found.name}: {replays.excluded} of {pairs} pairs are left out on both sides, because nothing was "
            f"compressed in one arm at least, so that there is no {protocol.test.endpoint}"
        )
    if not any(replays.lost):
        return
    cases = "no problem is complete"
    if whole := list(replays.complete.values()):
        cases = f"over the {len(whole)} problems with complete pairs {number(sum(whole, Fraction()) / len(whole))}"
    yield (
        f"{found.name}: {replays.lost[0]} baseline and {replays.lost[1]} candidate trials left no result; "
        f"{replays.void} pairs of which neither arm did are left out, the others count with the worst value of the "
        f"comparison; difference {number(found.improvement.difference)}, {cases}"
    )


def _sensitivity(made: Improvement, baseline: ArmTrials, candidate: ArmTrials) -> Iterable[str]:
    """How far the difference could move if the trials without a result had gone otherwise."""
    lost = [sum(arm.absent.values()) for arm in (baseline, candidate)]
    if not any(lost):
        return
    problems = list(baseline.right)
    columns = [[column[p] for p in problems] for arm in (baseline, candidate) for column in (arm.right, arm.absent)]
    four = sensitivity(columns[0], columns[2], columns[1], columns[3], made.samples)
    cases = "no problem is complete"
    if four.complete:
        cases = f"over the {four.complete.n} complete problems {number(four.complete.difference)}"
    yield (
        f"{lost[0]} baseline and {lost[1]} candidate trials left no result and count as wrong; "
        f"difference {number(made.difference)}, {cases}, between {number(four.worst.difference)} "
        f"and {number(four.best.difference)} whatever they would have been"
    )
