"""What the dev split decides: a configuration for each candidate, and which candidates are confirmed. Pure, so that
`tune` and `verify` run the same lines.

Tuning rules. ``max_mean_accuracy``: a configuration's score is its mean dev accuracy, an exact fraction; a trial
without a record counts as wrong. ``max_mean_endpoint``: its score is its mean improvement over the baseline on dev
(`endpoints.score`), the baseline's own being 0. With scope ``all_cells`` one configuration wins for all cells by its
mean over the cells; with ``per_cell`` each cell has its own winner. Highest score wins, ties go by `ties`.

Screening rule ``best_dev_gain``: a candidate's gain is the mean over the cells of its chosen configuration's score
minus the baseline's. The best of those that gain enough survive, ties going to the one listed first. Without a
screening rule every candidate survives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from cask_eval.decide.budgets import text
from cask_eval.decide.endpoints import pair, score
from cask_eval.decide.trial import Trial, Trials
from cask_eval.fields import Param
from cask_eval.ledger.events import ArmChoice, Select
from cask_eval.protocol.keys import configs, dev_runs, full_arms
from cask_eval.protocol.model import CEILING, FULL, REFERENCE, Candidate, Protocol
from cask_eval.records.model import Record

Scores = dict[str, dict[str, dict[str, Fraction]]]
Choice = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Selection:
    """scores: cell → arm → configuration → dev score, the baseline's configuration being "". chosen: cell →
    candidate → configuration. gains: candidate → mean gain over the baseline. survivors: as the protocol lists them."""

    scores: Scores
    chosen: Choice
    gains: dict[str, Fraction]
    survivors: list[str]


def rule(protocol: Protocol) -> str:
    """The registered rules as `Select.rule` states them."""
    tuning, screening = protocol.tuning, protocol.screening
    stated = f"{tuning.select}, scope {tuning.scope}, ties {tuning.ties}"
    if screening is None:
        return stated
    return f"{stated}; {screening.rule}, survivors {screening.survivors}, min_gain {screening.min_gain}"


def arm_of(protocol: Protocol, arm: str, config: str) -> tuple[str, dict[str, Param]]:
    """Preset and parameters of an arm in a configuration: "" for the baseline, the controls and what runs with the full
    cache. Raises KeyError."""
    if arm in (REFERENCE, CEILING) and protocol.fidelity:
        return FULL, {}
    found = protocol.arms[arm]
    return found.preset, dict(configs(found))[config]


def select(protocol: Protocol, dev_records: Iterable[Record], dev_ids: Collection[str]) -> Selection:
    """The registered rules applied to the dev records."""
    table = scores(protocol, dev_records, dev_ids)
    chosen = choose(protocol, table)
    gained = gains(protocol, table, chosen)
    return Selection(table, chosen, gained, survivors(protocol, gained))


def freeze(
    protocol: Protocol,
    found: Selection,
    matched: dict[str, dict[str, dict[str, ArmChoice]]],
    controls: dict[str, dict[str, ArmChoice]],
) -> Select:
    """The event that commits to a selection. Every held-out arm is frozen as it ran on dev (`DevRun.matched`), the
    controls (cell → name → choice) as they are given, and the ceiling as the references."""
    arms = {
        cell.name: {
            "baseline": matched[cell.name]["baseline"][""],
            **{name: matched[cell.name][name][found.chosen[cell.name][name]] for name in found.survivors},
            **controls[cell.name],
        }
        for cell in protocol.cells
    }
    for cell in protocol.reference_cells:
        arms[cell.name] = dict.fromkeys(full_arms("heldout"), matched[cell.name][REFERENCE][""])
    return Select(
        rule=rule(protocol),
        scores=stated(found.scores),
        chosen=found.chosen,
        gains={name: text(gain) for name, gain in found.gains.items()},
        survivors=found.survivors,
        arms=arms,
    )


def stated(scores: Scores) -> dict[str, dict[str, dict[str, str]]]:
    """Scores as `Select.scores` writes them."""
    return {
        cell: {arm: {name: text(score) for name, score in row.items()} for arm, row in rows.items()}
        for cell, rows in scores.items()
    }


def scores(protocol: Protocol, dev_records: Iterable[Record], dev_ids: Collection[str]) -> Scores:
    """Cell → arm → configuration → dev score. Records of other arms, phases and problems are passed over; nothing
    counts twice."""
    if protocol.fidelity:
        return _improvements(protocol, dev_records, list(dev_ids))
    samples, wanted = protocol.generation.samples, set(dev_ids)
    right: dict[tuple[str, str, str], set[tuple[str, int]]] = defaultdict(set)
    for r in dev_records:
        if r.phase == "dev" and r.problem in wanted and r.sample < samples and r.grade.correct:
            right[r.cell, r.arm, r.config].add((r.problem, r.sample))
    trials = len(wanted) * samples
    return {
        cell.name: {
            arm: {name: Fraction(len(right[cell.name, arm, name]), trials) for name in names}
            for arm, names in dev_runs(protocol).items()
        }
        for cell in protocol.cells
    }


def _improvements(protocol: Protocol, dev_records: Iterable[Record], dev_ids: list[str]) -> Scores:
    samples, wanted = protocol.generation.samples, set(dev_ids)
    ran: dict[tuple[str, str, str], dict[tuple[str, int], Trial]] = defaultdict(dict)
    made = Trials()
    for r in dev_records:
        if r.phase == "dev" and r.problem in wanted and r.sample < samples:
            ran[r.cell, r.arm, r.config][r.problem, r.sample] = made.of(r)

    def trials(*key: str) -> dict[str, list[Trial]]:
        return {p: [ran[key][p, s] for s in range(samples) if (p, s) in ran[key]] for p in dev_ids}

    out: Scores = {}
    for cell in protocol.cells:
        baseline = trials(cell.name, "baseline", "")
        out[cell.name] = {
            arm: {
                name: score(pair(protocol.test.endpoint, baseline, trials(cell.name, arm, name), samples))
                for name in names
            }
            for arm, names in dev_runs(protocol).items()
        }
    return out


def choose(protocol: Protocol, scores: Scores) -> Choice:
    """Cell → candidate → winning configuration."""
    cells = [c.name for c in protocol.cells]
    chosen: Choice = {cell: {} for cell in cells}
    for candidate in protocol.candidates:
        rows = {cell: scores[cell][candidate.name] for cell in cells}
        if protocol.tuning.scope == "all_cells":
            mean = {name: _mean(row[name] for row in rows.values()) for name, _ in configs(candidate)}
            rows = dict.fromkeys(cells, mean)
        for cell, row in rows.items():
            chosen[cell][candidate.name] = _best(candidate, row, protocol.tuning.ties)
    return chosen


def gains(protocol: Protocol, scores: Scores, chosen: Choice) -> dict[str, Fraction]:
    """Candidate → mean over the cells of its chosen configuration's dev score minus the baseline's."""
    return {
        c.name: _mean(row[c.name][chosen[cell][c.name]] - row["baseline"][""] for cell, row in scores.items())
        for c in protocol.candidates
    }


def survivors(protocol: Protocol, gains: dict[str, Fraction]) -> list[str]:
    """The candidates to be confirmed, in the protocol's order; there may be none."""
    listed = [c.name for c in protocol.candidates]
    if protocol.screening is None:
        return listed
    fit = [name for name in listed if gains[name] >= Fraction(protocol.screening.min_gain)]
    best = sorted(fit, key=lambda name: -gains[name])[: protocol.screening.survivors]
    return [name for name in listed if name in best]


def _mean(values: Iterable[Fraction]) -> Fraction:
    given = list(values)
    return sum(given, Fraction()) / len(given)


def _best(candidate: Candidate, row: dict[str, Fraction], ties: str) -> str:
    top = max(row.values())
    tied = [(name, params) for name, params in configs(candidate) if row[name] == top]
    if ties == "first":
        return tied[0][0]
    tune = candidate.tune
    return min(tied, key=lambda c: [_size(c[1][k], tune[k]) for k in tune])[0]


def _size(value: str | int | bool, listed: list[str | int | bool]) -> Decimal:
    """What `smallest` compares: the number, or the place in the list where one of the listed values is a word."""
    try:
        sizes = [Decimal(v if isinstance(v, str) else int(v)) for v in listed]
        if all(s.is_finite() for s in sizes):
            return sizes[listed.index(value)]
    except InvalidOperation:
        pass
    return Decimal(listed.index(value))
