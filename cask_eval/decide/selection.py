"""The tuning rule: which configuration of the candidate the dev split chooses. Pure, so that `tune` and `verify`
run the same lines.

Rule ``max_mean_accuracy``: a configuration's score is its mean dev accuracy, an exact fraction; a trial without a
record counts as wrong. With scope ``all_cells`` one configuration wins for all cells by its mean over the cells;
with ``per_cell`` each cell has its own winner. Highest score wins, ties go by `ties`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from cask_eval.fields import Param
from cask_eval.protocol.keys import configs
from cask_eval.protocol.model import Protocol
from cask_eval.records.model import Record

Scores = dict[str, dict[str, Fraction]]


def rule(protocol: Protocol) -> str:
    """The registered rule as `Select.rule` states it."""
    tuning = protocol.tuning
    return f"{tuning.select}, scope {tuning.scope}, ties {tuning.ties}"


def arm_of(protocol: Protocol, arm: str, config: str) -> tuple[str, dict[str, Param]]:
    """Preset and parameters of an arm, the candidate's with those of the configuration. Raises KeyError."""
    if arm == "candidate":
        return protocol.candidate.preset, dict(configs(protocol.candidate))[config]
    return protocol.arms[arm].preset, dict(protocol.arms[arm].params)


def scores(protocol: Protocol, dev_records: Iterable[Record], dev_ids: Collection[str]) -> Scores:
    """Cell → configuration → mean dev accuracy of the candidate. Records of other arms, phases and problems are
    passed over; nothing counts twice."""
    samples, wanted = protocol.generation.samples, set(dev_ids)
    right: dict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
    for r in dev_records:
        if r.phase == "dev" and r.arm == "candidate" and r.problem in wanted and r.sample < samples and r.grade.correct:
            right[r.cell, r.config].add((r.problem, r.sample))
    trials = len(wanted) * samples
    return {
        cell.name: {name: Fraction(len(right[cell.name, name]), trials) for name, _ in configs(protocol.candidate)}
        for cell in protocol.cells
    }


def choose(protocol: Protocol, scores: Scores) -> dict[str, str]:
    """Cell → winning configuration."""
    cells = [c.name for c in protocol.cells]
    if protocol.tuning.scope == "per_cell":
        return {cell: _best(protocol, scores[cell]) for cell in cells}
    names = [name for name, _ in configs(protocol.candidate)]
    over_all = {name: sum((scores[cell][name] for cell in cells), Fraction()) / len(cells) for name in names}
    return dict.fromkeys(cells, _best(protocol, over_all))


def _best(protocol: Protocol, row: dict[str, Fraction]) -> str:
    top = max(row.values())
    tied = [(name, params) for name, params in configs(protocol.candidate) if row[name] == top]
    if protocol.tuning.ties == "first":
        return tied[0][0]
    tune = protocol.candidate.tune
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
