"""The grid of a registered study with a fidelity endpoint, from its held-out records: what its own tests do not ask,
such as crossings of budgets. Beside the registered result, never instead of it. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from cask_eval.errors import StateError
from cask_eval.fidelity import AFTER
from cask_eval.protocol.model import CEILING, REFERENCE, Protocol
from cask_eval.records.model import Record
from cask_eval.replay import records as folders
from cask_eval.replay.frontier import Frontier, Question, Trials, enter, judge


def check(protocol: Protocol, metric: str) -> None:
    """Raises StateError when the study has no replays, or for a metric over other tokens than the ceiling's."""
    if not protocol.fidelity:
        raise StateError(
            f"study {protocol.study!r} has no fidelity endpoint, so it holds no replays; name one that has"
        )
    if metric.endswith(AFTER):
        raise StateError(f"--metric {metric}: a study's ceiling is over all tokens; leave {AFTER} out")


class Replay(NamedTuple):
    """What a frontier needs of a record: `value` by the metric that is asked about, mean and peak of its cache."""

    cell: str
    arm: str
    problem: str
    sample: int
    value: Fraction | None
    mean: Fraction
    peak: Fraction
    regime: str

    @classmethod
    def of(cls, r: Record, metric: str) -> Replay | None:
        """None of a trial that is no replay, or that failed."""
        if r.fidelity is None or (account := r.account()) is None:
            return None
        value = r.fidelity.endpoint(metric)
        return cls(
            r.cell, r.arm, r.problem, r.sample, value, account.mean, account.peak, sys.intern(r.regime or "unknown")
        )


def frontiers(
    protocol: Protocol, registration: str, replays: Sequence[Replay], arms: Sequence[str], question: Question
) -> dict[str, Frontier]:
    """Model → its frontier, of a study and a metric that `check` passes. `arms`: those that ran. Failed trials are left
    out, with their problems."""
    out = {}
    for model in protocol.models:
        cell = f"{model.name}/{REFERENCE}"
        ceiling = {(r.problem, r.sample): r.value for r in replays if (r.cell, r.arm) == (cell, CEILING)}
        keys = [(arm, budget) for budget in protocol.budgets for arm in arms]
        table = {key: Trials({}, {}, [], [], []) for key in [(folders.CEILING, 0), *keys]}
        for r in replays:
            name, _, budget = r.cell.rpartition("/")
            if name != model.name or (r.problem, r.sample) not in ceiling:
                continue
            key = (folders.CEILING, 0) if r.cell == cell else (r.arm, int(budget.removeprefix("b")))
            if key not in table or (r.cell == cell and r.arm != CEILING):
                continue
            enter(table[key], question, r.problem, r.value, ceiling[r.problem, r.sample], r.mean, r.peak)
            table[key].regimes.append(r.regime)
        problems = list(dict.fromkeys(problem for problem, _ in ceiling))
        seed = {"registration": registration, "model": model.name}
        controls = [c.name for c in protocol.controls]
        out[model.name] = judge(table, question, problems, protocol.generation.samples, seed, controls)
    return out
