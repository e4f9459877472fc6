"""What a report says, gathered once and printed by every format: texts and printed numbers, no markup.

Everything that someone else wrote (names, hypothesis, problem ids) has passed `format.one_line`; escaping is the
business of each format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import TypeVar

from cask_eval.decide.beside import CORRECTIONS, Beside, beside
from cask_eval.decide.model import AnalysisDocument, ArmResult, CellResult, Interval, number
from cask_eval.fields import Strict
from cask_eval.ledger.events import (
    ArmChoice,
    Close,
    Consume,
    Environment,
    Event,
    PackageLock,
    Records,
    Register,
    Select,
)
from cask_eval.ledger.levels import LEVELS, brief
from cask_eval.protocol.model import Arm as RegisteredArm
from cask_eval.protocol.model import Branch, Protocol
from cask_eval.protocol.model import Cell as ProtocolCell
from cask_eval.records.model import Record
from cask_eval.report import format as fmt
from cask_eval.report import graders, regimes
from cask_eval.report.limits import limits
from cask_eval.report.measures import Measures, collect
from cask_eval.report.scale import Scale, columns, scale_of

T = TypeVar("T", bound=Strict)


@dataclass(frozen=True)
class Check:
    """One line of `verify`: id such as V01, what was checked, how it came out, and anything worth adding."""

    id: str
    title: str
    status: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """One arm in one cell. role: ``baseline``, ``candidate`` or ``control``. mean: the mean cache as a number, for the
    figure; None where there is none."""

    name: str
    role: str
    mean: Fraction | None
    preset: str
    params: str
    budget: str
    accuracy: str
    correct: str
    fidelity: tuple[str, ...]
    """Values of `ReportData.columns`."""
    mean_cache: str
    pooled_cache: str
    peak_cache: str
    kept: str
    wiped: str
    longest: str
    active: str
    output_tokens: str
    truncated: int
    failed: int
    missing: int

    @property
    def lost(self) -> str:
        return f"{self.truncated} / {self.failed} / {self.missing}"


@dataclass(frozen=True)
class Flip:
    """A problem on which the arms differ. `better` names the arm that did better."""

    problem: str
    baseline: str
    candidate: str
    better: str


@dataclass(frozen=True)
class Cell:
    """One comparison; `name` is its cell, after its candidate where there are several. `p` holds the p-value of every
    test by name, the registered one first. Differences are in the unit of `ReportData.scale`. `result` is what is
    printed, for the figure."""

    result: CellResult
    name: str
    candidate: str
    cell: str
    outcome: str
    n: int
    samples: int
    effect: str
    error: str
    interval: str
    interval_adjusted: str
    wins: int
    losses: int
    ties: int
    p: dict[str, str]
    corrections: tuple[str, ...]
    """p after every correction of `decide.beside.CORRECTIONS`."""
    tango: str
    detects: str
    non_inferior: str
    p_registered: str
    p_adjusted: str
    p_veto: str
    verdict: str
    ratio: str
    ratio_interval: str
    reasons: tuple[str, ...]
    flips: tuple[Flip, ...]

    @property
    def wlt(self) -> str:
        return f"{self.wins} / {self.losses} / {self.ties}"

    @property
    def outcome_word(self) -> str:
        """A void cell must not be overlooked."""
        return self.outcome.upper() if self.outcome == "void" else self.outcome


@dataclass(frozen=True)
class DevScores:
    """Dev score of a candidate, cell × configuration; the last of each row is the column that was chosen. `mean` is
    the last row."""

    candidate: str
    configs: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], int], ...]
    mean: tuple[str, ...]


@dataclass(frozen=True)
class Screened:
    """A candidate's dev score in each cell, as chosen, and on average; its mean gain over the baseline."""

    candidate: str
    preset: str
    scores: tuple[str, ...]
    mean: str
    gain: str
    survived: bool

    @property
    def word(self) -> str:
        return "confirmed" if self.survived else "screened out"


@dataclass(frozen=True)
class Screening:
    """How the dev split decided which candidates are confirmed; `baseline` is a row like those of the candidates."""

    rule: str
    cells: tuple[str, ...]
    baseline: Screened
    rows: tuple[Screened, ...]


@dataclass(frozen=True)
class Match:
    """One arm's budget as frozen on the dev split: nominal b, matched b′, its mean cache and what it had to match."""

    cell: str
    arm: str
    preset: str
    params: str
    trigger: str
    delta: int
    nominal: int
    budget: int
    dev_mean: str
    reference_mean: str
    ratio: str


@dataclass(frozen=True)
class Plan:
    """What was frozen before the held-out split was touched."""

    rule: str
    scores: tuple[DevScores, ...]
    screening: Screening | None
    matches: tuple[Match, ...]

    @property
    def matches_by_cell(self) -> list[tuple[str, list[Match]]]:
        """The matches lie cell by cell."""
        return [(cell, list(of_cell)) for cell, of_cell in groupby(self.matches, key=lambda m: m.cell)]


@dataclass(frozen=True)
class Fact:
    """A line of the provenance: a digest or another plain value."""

    name: str
    text: str
    digest: str = ""


@dataclass(frozen=True)
class Step:
    """One ledger event."""

    seq: int
    event: str
    time: str
    digest: str


@dataclass(frozen=True)
class ReportData:
    study: str
    hypothesis: str
    branch: str
    decision: str
    label: str
    level: str
    level_text: str
    test: str
    unit: str
    counts: str
    tests: tuple[str, ...]
    corrections: tuple[str, ...]
    non_inferiority: str
    """The registered margin in words; empty where there is none."""
    interval_level: str
    adjusted_level: str
    ratio_level: str
    screened: str
    """Who was confirmed, in a line; empty where there was nothing to choose from."""
    gains: str
    """The dev gains in a line, for where there is no table of them."""
    scale: Scale
    columns: tuple[str, ...]
    """The fidelity endpoints that are shown of every arm; empty where its accuracy is."""
    cells: tuple[Cell, ...]
    groups: tuple[tuple[str, tuple[Cell, ...]], ...]
    """The comparisons by candidate; one group without a name where there is one candidate."""
    arms: tuple[tuple[str, tuple[Arm, ...]], ...]
    full: tuple[tuple[str, tuple[Arm, ...]], ...]
    """The references' cells in the same form."""
    differences: graders.Differences
    regimes: tuple[regimes.Row, ...]
    exclusion: str
    measures: Measures
    branches: tuple[tuple[str, str, str], ...]
    plan: Plan | None
    deviations: tuple[str, ...]
    checks: tuple[Check, ...]
    limits: tuple[str, ...]
    provenance: tuple[Fact, ...]
    packages: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    analysis: AnalysisDocument

    @property
    def differing(self) -> list[graders.Difference]:
        """The graders' differences in the order of the arms."""
        found = self.differences.of
        return [found[cell, a.name] for cell, arms in self.arms for a in arms if (cell, a.name) in found]

    @property
    def regimes_by_cell(self) -> list[tuple[str, list[regimes.Row]]]:
        """The rows lie cell by cell."""
        return [(cell, list(rows)) for cell, rows in groupby(self.regimes, key=lambda r: r.cell)]

    def of_verdict(self, verdict: str) -> tuple[Cell, ...]:
        """The comparisons whose caches were judged so for a reason."""
        return tuple(c for c in self.cells if c.verdict == verdict and c.reasons)


def gather(
    analysis: AnalysisDocument,
    protocol: Protocol,
    events: Iterable[Event],
    checks: Sequence[Check] = (),
    level: str = "L0",
    records: Iterable[Record] = (),
    differences: graders.Differences = graders.Differences(),
) -> ReportData:
    """Collect what the report prints. `events` may be a whole ledger: other studies' events are passed over.

    `level` is the evidence level that `verify` found; without its word it is the lowest. `records` are the held-out
    ones, for their regimes and the methods' own measures and nothing else; `differences` is what `graders.compare`
    found there. Raises ValueError when the analysis and the protocol are of different studies.
    """
    if analysis.study != protocol.study:
        raise ValueError(f"the analysis is of study {analysis.study}, the protocol of {protocol.study}")
    if level not in LEVELS:
        raise ValueError(f"evidence level {level!r} is none of {', '.join(LEVELS)}")
    mine = [e for e in events if e.study == analysis.study]
    select = _payload(mine, "select", Select)
    order = [c.name for c in protocol.cells], _names(analysis, protocol)
    counting = regimes.Counting(select)
    measures = collect(counting.through(records), *order)
    scale = scale_of(analysis.endpoint)
    first = analysis.cells[0] if analysis.cells else None
    others = sorted({name for c in analysis.cells for name in c.p} - {analysis.procedure})
    cells = tuple(
        _cell(c, more, [analysis.procedure, *others], analysis, protocol, scale)
        for c, more in zip(analysis.cells, beside(analysis), strict=True)
    )

    return ReportData(
        study=analysis.study,
        hypothesis=fmt.one_line(analysis.hypothesis),
        branch=fmt.one_line(analysis.branch),
        decision=fmt.one_line(analysis.decision),
        label=analysis.label,
        level=level,
        level_text=brief(level),
        test=_test(analysis, protocol),
        unit=_unit(protocol),
        counts=_counts(analysis, protocol),
        tests=tuple(fmt.words(name) for name in [analysis.procedure, *others]),
        corrections=("Bonferroni", "Holm", "max-T of sign flips"),
        non_inferiority=_margin(protocol, scale),
        interval_level=fmt.level(first.interval.level) if first else "",
        adjusted_level=fmt.level(first.interval_adjusted.level) if first else "",
        ratio_level=fmt.level(first.matched.interval.level) if first else "",
        screened=_screened(analysis, protocol),
        gains=_gains(analysis, protocol, scale),
        scale=scale,
        columns=columns(analysis.endpoint),
        cells=cells,
        groups=_groups(cells, protocol),
        arms=_arms(analysis, protocol, protocol.cells),
        full=_arms(analysis, protocol, protocol.reference_cells),
        differences=differences,
        regimes=() if measures.fault else counting.rows(*order),
        exclusion=regimes.rule(protocol),
        measures=measures,
        branches=tuple((fmt.one_line(b.name), _condition(b), fmt.one_line(b.decision)) for b in protocol.branches),
        plan=_plan(select, protocol) if select else None,
        deviations=tuple(_deviations(analysis, mine)),
        checks=tuple(
            Check(
                fmt.one_line(c.id),
                fmt.one_line(c.title),
                fmt.one_line(c.status),
                tuple(fmt.one_line(d) for d in c.details),
            )
            for c in checks
        ),
        limits=tuple(limits(analysis, protocol, level, verified=bool(checks))),
        provenance=tuple(_provenance(analysis, mine)),
        packages=tuple(_packages(mine)),
        steps=tuple(Step(e.seq, e.event, e.time, e.hash) for e in mine),
        analysis=analysis,
    )


def _test(a: AnalysisDocument, protocol: Protocol) -> str:
    unit = _unit(protocol)
    over = f"over {a.family} registered {unit}s" if a.family != 1 else f"over one registered {unit}"
    name = {"max_t": "max-T"}.get(a.correction, a.correction.capitalize())
    correction = f"{name} {over}" if a.correction != "none" else "no correction for multiplicity"
    return (
        f"{fmt.words(a.procedure)}, {a.alternative}, α = {fmt.alpha(a.alpha)}, {correction}; "
        f"a {unit} is negative at a one-sided level of {fmt.alpha(protocol.test.veto.alpha)}"
    )


def _margin(protocol: Protocol, scale: Scale) -> str:
    rule = protocol.test.non_inferiority
    return f"{scale.spread(rule.margin)} {scale.unit} at a one-sided {fmt.alpha(rule.alpha)}" if rule else ""


def _unit(protocol: Protocol) -> str:
    """What is counted: with one candidate every comparison is a cell."""
    return "comparison" if len(protocol.candidates) > 1 else "cell"


def _counts(a: AnalysisDocument, protocol: Protocol) -> str:
    null = len(a.cells) - a.positive_cells - a.negative_cells - a.void_cells
    absent = a.family - len(a.cells)
    return (
        f"{a.positive_cells} positive, {a.negative_cells} negative, {null} null, {a.void_cells} void"
        + (f", {a.non_inferior_cells} non-inferior" if a.non_inferior_cells is not None else "")
        + (f", {absent} without a survivor" if absent and a.screening else "")
        + f" of {a.family} registered {_unit(protocol)}{'' if a.family == 1 else 's'}"
        + (": nothing was decided" if a.all_void else "")
    )


def _screened(a: AnalysisDocument, protocol: Protocol) -> str:
    """One line on who was confirmed; empty where there was nothing to choose from."""
    if len(protocol.candidates) == 1 and protocol.screening is None:
        return ""
    return f"{sum(s.survived for s in a.screening)} of {len(a.screening)} candidates confirmed"


def _gains(a: AnalysisDocument, protocol: Protocol, scale: Scale) -> str:
    if not _screened(a, protocol):
        return ""
    return f"dev gain in {scale.unit}: " + ", ".join(
        f"{fmt.one_line(s.candidate)} {scale.difference(s.gain)}{'' if s.survived else ' (out)'}"
        for s in a.screening
    )


def _groups(cells: tuple[Cell, ...], protocol: Protocol) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    if len(protocol.candidates) == 1:
        return (("", cells),) if cells else ()
    names = dict.fromkeys(c.candidate for c in cells)
    return tuple((name, tuple(c for c in cells if c.candidate == name)) for name in names)


def _condition(branch: Branch) -> str:
    if branch.when is None:
        return "otherwise"
    given = branch.when.model_dump(exclude_none=True)
    return " and ".join(f"{name.replace('_', ' ')} {_relation(condition)}" for name, condition in given.items())


def _relation(condition: str) -> str:
    sign, number = condition.rstrip("0123456789").strip(), condition.lstrip("<>=! ")
    return {">=": "≥", "<=": "≤", "==": "=", "!=": "≠"}.get(sign, sign) + "\N{NO-BREAK SPACE}" + number


def _cell(
    c: CellResult, more: Beside, order: list[str], analysis: AnalysisDocument, protocol: Protocol, scale: Scale
) -> Cell:
    m, held = c.matched, c.non_inferior
    # Before correction, this is where the line runs.
    share = analysis.family if analysis.correction != "none" else 1
    line = {analysis.procedure: str(fmt.value(analysis.alpha) / max(share, 1))}
    tango = fmt.bracket(*(fmt.points(number(x)) for x in more.tango)) if more.tango else fmt.DASH
    # Resampling pairs of which none differs gives an interval without width, which says more than is known.
    flat = more.tango is not None and not c.wins + c.losses
    return Cell(
        result=c,
        name=fmt.one_line(protocol.comparison(c.candidate, c.cell)),
        candidate=fmt.one_line(c.candidate),
        cell=fmt.one_line(c.cell),
        outcome=c.outcome,
        n=c.n,
        samples=c.samples,
        effect=scale.difference(c.difference),
        error=scale.spread(c.standard_error),
        interval=f"{tango} (Tango)" if flat else _interval(c.interval, scale),
        interval_adjusted=fmt.DASH if flat else _interval(c.interval_adjusted, scale),
        wins=c.wins,
        losses=c.losses,
        ties=c.ties,
        p={fmt.words(name): fmt.p_value(c.p[name], line.get(name)) if name in c.p else fmt.DASH for name in order},
        corrections=tuple(fmt.p_value(number(more.adjusted[name]), analysis.alpha) for name in CORRECTIONS),
        tango=tango,
        detects=fmt.points(number(more.detects)).lstrip("+") if more.detects else fmt.DASH,
        non_inferior=f"{'yes' if held.shown else 'no'}, p {fmt.p_value(held.p, held.alpha)}" if held else fmt.DASH,
        p_registered=fmt.p_value(c.p_registered, line[analysis.procedure]),
        p_adjusted=fmt.p_value(c.p_adjusted, analysis.alpha),
        p_veto=fmt.p_value(c.p_veto, protocol.test.veto.alpha),
        verdict=m.verdict,
        ratio=fmt.ratio(m.ratio),
        ratio_interval=fmt.bracket(fmt.ratio(m.interval.low), fmt.ratio(m.interval.high)),
        reasons=tuple(fmt.rounded(fmt.one_line(r)) for r in m.reasons),
        flips=tuple(_flips(c, scale)),
    )


def _interval(given: Interval, scale: Scale) -> str:
    return fmt.bracket(scale.difference(given.low), scale.difference(given.high))


def _flips(c: CellResult, scale: Scale) -> Iterator[Flip]:
    for f in c.flips:
        better = "candidate" if f.candidate > f.baseline else "baseline"
        yield Flip(fmt.one_line(f.problem), f"{f.baseline}/{c.samples}", f"{f.candidate}/{c.samples}", better)
    for v in c.values:
        if improvement := fmt.value(v.improvement):
            better = "candidate" if improvement > 0 else "baseline"
            yield Flip(fmt.one_line(v.problem), scale.value(v.baseline), scale.value(v.candidate), better)


def _arms(
    analysis: AnalysisDocument, protocol: Protocol, cells: Iterable[ProtocolCell]
) -> tuple[tuple[str, tuple[Arm, ...]], ...]:
    return tuple(
        (
            fmt.one_line(c.name),
            tuple(
                _arm(name, arm, protocol, columns(analysis.endpoint))
                for name, arm in _in_order(analysis.arms[c.name], protocol)
            ),
        )
        for c in cells
        if c.name in analysis.arms
    )


def _arm(name: str, a: ArmResult, protocol: Protocol, shown: Sequence[str]) -> Arm:
    candidates = {c.name for c in protocol.candidates}
    return Arm(
        name=fmt.one_line(name),
        role=name if name == "baseline" else "candidate" if name in candidates else "control",
        mean=fmt.value(a.mean_cache) if a.mean_cache else None,
        preset=fmt.one_line(a.preset),
        params=fmt.params(a.params),
        budget=f"{a.budget:,}",
        accuracy=fmt.percent(a.accuracy),
        correct=f"{a.correct:,}/{a.trials:,}",
        fidelity=tuple(scale_of(e).value(a.fidelity.get(e, "")) for e in shown),
        mean_cache=fmt.entries(a.mean_cache),
        pooled_cache=fmt.entries(a.pooled_cache),
        peak_cache=fmt.entries(a.peak_cache),
        kept=fmt.span(a.kept_min, a.kept_max),
        wiped=fmt.percent(a.wiped_regions),
        longest=fmt.count(a.longest_wiped),
        active=fmt.percent(a.active),
        output_tokens=fmt.entries(a.mean_output_tokens),
        truncated=a.truncated,
        failed=a.failed,
        missing=a.missing,
    )


def _in_order(arms: Mapping[str, object], protocol: Protocol) -> list[tuple]:
    """Arms as the protocol runs them. A document read from JSON has them sorted by name; that order means nothing."""
    known = [name for name in protocol.arms if name in arms]
    return [(name, arms[name]) for name in [*known, *sorted(set(arms) - set(known))]]


def _names(analysis: AnalysisDocument, protocol: Protocol) -> list[str]:
    """Every arm that ran, in the order of the protocol."""
    return [name for name, _ in _in_order({name: None for row in analysis.arms.values() for name in row}, protocol)]


def _plan(select: Select, protocol: Protocol) -> Plan:
    nominal = {c.name: c.budget for c in protocol.cells}
    scale = scale_of(protocol.test.endpoint)
    return Plan(
        rule=fmt.one_line(select.rule),
        scores=tuple(filter(None, (_scores(select, c.name, list(nominal), scale) for c in protocol.candidates))),
        screening=_screening(select, protocol, scale),
        matches=tuple(
            _match(cell, name, choice, nominal[cell])
            for cell in nominal
            if cell in select.arms
            for name, choice in _in_order(select.arms[cell], protocol)
        ),
    )


def _match(cell: str, name: str, choice: ArmChoice, nominal: int) -> Match:
    reference = fmt.value(choice.reference_mean)
    return Match(
        cell=fmt.one_line(cell),
        arm=fmt.one_line(name),
        preset=fmt.one_line(choice.preset),
        params=fmt.params(choice.params),
        trigger=fmt.one_line(choice.schedule.trigger),
        delta=choice.schedule.delta,
        nominal=nominal,
        budget=choice.schedule.budget,
        dev_mean=fmt.entries(choice.dev_mean),
        reference_mean=fmt.entries(choice.reference_mean),
        ratio=fmt.fixed(fmt.value(choice.dev_mean) / reference, 3) if reference else fmt.DASH,
    )


def _scores(select: Select, candidate: str, order: list[str], scale: Scale) -> DevScores | None:
    """The table by which the rule chose a configuration; None when there was nothing to choose from."""
    scores = {c: select.scores[c][candidate] for c in order if candidate in select.scores.get(c, {})}
    configs = sorted({config for row in scores.values() for config in row}, key=_config_order)
    if len(configs) < 2:
        return None
    chosen = {c: select.chosen.get(c, {}).get(candidate) for c in scores}
    return DevScores(
        candidate=fmt.one_line(candidate),
        configs=tuple(fmt.one_line(c) or "as given" for c in configs),
        rows=tuple(
            (
                fmt.one_line(c),
                tuple(scale.score(row[k]) if k in row else fmt.DASH for k in configs),
                configs.index(chosen[c]) if chosen[c] in configs else -1,
            )
            for c, row in scores.items()
        ),
        mean=tuple(_mean((row[k] for row in scores.values() if k in row), scale) for k in configs),
    )


def _screening(select: Select, protocol: Protocol, scale: Scale) -> Screening | None:
    """The table by which the rule chose who is confirmed; None where there was nothing to choose from."""
    if len(protocol.candidates) == 1 and protocol.screening is None:
        return None
    cells = [c.name for c in protocol.cells if c.name in select.scores]

    def row(name: str, arm: RegisteredArm, survived: bool) -> Screened:
        config = {c: select.chosen.get(c, {}).get(name, "") for c in cells}
        scores = [select.scores[c].get(name, {}).get(config[c], "") for c in cells]
        return Screened(
            candidate=fmt.one_line(name),
            preset=fmt.one_line(arm.preset),
            scores=tuple(scale.score(s) if s else fmt.DASH for s in scores),
            mean=_mean(filter(None, scores), scale),
            gain=scale.difference(select.gains.get(name, "")),
            survived=survived,
        )

    return Screening(
        rule=_screening_rule(protocol, scale),
        cells=tuple(fmt.one_line(c) for c in cells),
        baseline=row("baseline", protocol.baseline, True),
        rows=tuple(row(c.name, c, c.name in select.survivors) for c in protocol.candidates),
    )


def _screening_rule(protocol: Protocol, scale: Scale) -> str:
    given, several = protocol.screening, len(protocol.candidates)
    if given is None:
        return f"no screening was registered: all {several} candidates are confirmed"
    how_many = "the best one" if given.survivors == 1 else f"the best {given.survivors}"
    return (
        f"{how_many} of {several} by mean dev gain over the baseline, of those that gain at least "
        f"{scale.difference(given.min_gain)} {scale.unit}; ties go to the one listed first"
    )


def _mean(given: Iterable[str], scale: Scale) -> str:
    values = [fmt.value(v) for v in given]
    return scale.score(str(sum(values, Fraction(0)) / len(values))) if values else fmt.DASH


def _config_order(config: str) -> list[tuple]:
    """Numbers by size, so that 0.5 does not come after 0.25 by accident of spelling; other values by name."""
    key: list[tuple] = []
    for part in config.split(","):
        name, _, given = part.partition("=")
        try:
            key.append((name, 0, fmt.value(given), ""))
        except (ValueError, ZeroDivisionError):
            key.append((name, 1, Fraction(0), given))
    return key


def _deviations(a: AnalysisDocument, events: list[Event]) -> list[str]:
    """What did not go as planned, or should be known when reading the numbers."""
    lines = [fmt.one_line(n) for n in a.notes]
    register, consume, close = (
        _payload(events, "register", Register),
        _payload(events, "consume", Consume),
        _payload(events, "close", Close),
    )
    if register:
        lines += [f"Warning at registration: {fmt.one_line(w)}" for w in register.warnings]
    for e in events:
        if e.event == "amend":
            reason = e.payload.get("reason")
            said = f": {fmt.one_line(str(reason))}" if reason else "."
            lines.append(f"The protocol was amended at {e.time}{said}")

    broken = [Records.model_validate(e.payload) for e in events if e.event == "records"]
    interrupted = sum(not r.complete for r in broken)
    if interrupted:
        times = "once" if interrupted == 1 else f"{interrupted} times"
        lines.append(f"The held-out run was interrupted {times} and went on within its one attempt.")

    if register and consume:
        lines += _differences(register.environment, consume.environment, "registration", "the held-out run")
    if consume and close:
        lines += _differences(consume.environment, close.environment, "the start of the held-out run", "its end")
    if register and close:
        lines += _changed_methods(register.methods, close.methods)
    return lines


def _differences(old: Environment, new: Environment, then: str, now: str) -> list[str]:
    a, b = ({**e.model_dump(exclude={"packages"}), **e.packages} for e in (old, new))
    return [
        f"{fmt.one_line(name)} differed between {then} ({_said(a.get(name))}) and {now} ({_said(b.get(name))})."
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def _said(text: str | None) -> str:
    if text is None:
        return "absent"
    return fmt.short(text) if text.startswith("sha256:") else fmt.one_line(text)


def _changed_methods(old: list[PackageLock], new: list[PackageLock]) -> list[str]:
    was = {p.name: p.digest for p in old}
    return [
        f"The source of {fmt.one_line(p.name)} at the end of the run is not the one registered."
        for p in new
        if was.get(p.name) != p.digest
    ]


def _provenance(a: AnalysisDocument, events: list[Event]) -> list[Fact]:
    facts = [Fact("registration", "the ledger's register event", a.registration)]
    register = _payload(events, "register", Register)
    if register:
        facts.append(Fact("protocol", fmt.one_line(register.protocol_path), register.protocol_digest))
        for role, split in register.splits.items():
            name = "held-out split" if role == "heldout" else f"{role} split"
            facts.append(Fact(name, f"{fmt.one_line(split.path)}, {split.count:,} problems", split.digest))
        facts += [
            Fact("methods", f"{fmt.one_line(m.name)} {fmt.one_line(m.version)}", m.digest) for m in register.methods
        ]
        facts += [Fact("model", f"{m.name} ({fmt.one_line(m.id)})", m.digest) for m in register.models]
    close = _payload(events, "close", Close)
    if close:
        facts.append(
            Fact(
                "records",
                f"{fmt.one_line(close.records.path)}, {close.records.count:,} records",
                close.records.merkle_root,
            )
        )
    ran = _ran(events)
    if ran:
        device = ", ".join(
            fmt.one_line(t)
            for t in (ran.device, ran.cuda and f"CUDA {ran.cuda}", ran.driver and f"driver {ran.driver}")
            if t
        )
        facts += [
            Fact("toolkit", "cask-eval", ran.toolkit),
            Fact("environment", f"Python {fmt.one_line(ran.python)}, {fmt.one_line(ran.platform)}"),
            Fact("device", device),
        ]
        if ran.kernels:
            facts.append(Fact("kernels", fmt.one_line(ran.kernels)))
    return facts


def _packages(events: list[Event]) -> list[tuple[str, str]]:
    ran = _ran(events)
    return sorted((fmt.one_line(k), fmt.one_line(v)) for k, v in ran.packages.items()) if ran else []


def _ran(events: list[Event]) -> Environment | None:
    """What ran the held-out split, or what registered it when that is all there is."""
    source = _payload(events, "consume", Consume) or _payload(events, "register", Register)
    return source.environment if source else None


def _payload(events: list[Event], kind: str, model: type[T]) -> T | None:
    """The last event of a kind; there should be one at most, and `verify` says so when there are more."""
    for event in reversed(events):
        if event.event == kind:
            return model.model_validate(event.payload)
    return None
