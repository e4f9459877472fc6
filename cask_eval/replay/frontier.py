"""Fidelity against memory over a grid of methods and budgets: each point with its interval, the minimum usable budget
of each method, and every crossing. No torch.

Problems are the unit: the samples of one are averaged. Values are oriented so that more is better, and losses are taken
against the ceiling over the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from cask_eval import jsonl
from cask_eval.canonical import digest, loads
from cask_eval.errors import DriftError, RecordError
from cask_eval.fidelity import AFTER, ENDPOINTS
from cask_eval.fields import Strict, first_fault
from cask_eval.replay.records import CEILING, read_folder
from cask_eval.replay.summary import ceiling_over, trials_of
from cask_eval.stats.frontier import Contrast, MinimumBudget, at_one_budget, crossings, minimum_budget
from cask_eval.stats.off_lattice import bootstrap_interval

METRICS = [m + s for s in ("", AFTER) for m in ENDPOINTS]

FILE = "frontier.json"

Decimal9 = Annotated[str, Field(pattern=r"^\d{1,6}(\.\d{1,9})?$")]


class Question(Strict):
    """What is asked of a folder: which loss of which metric is tolerated, at which level. `records`: how many replays
    the folder held when this was written down; with 0 nobody can have chosen it by what came out."""

    frontier: Literal["cask-eval/frontier/1"] = "cask-eval/frontier/1"
    metric: str
    epsilon: Decimal9
    alpha: Decimal9
    records: Annotated[int, Field(ge=0)]

    @property
    def stated(self) -> str:
        if self.records == 0:
            return "written down, by the author's word, before anything was replayed"
        return f"written down when {self.records} replays were there, so it may have been chosen by what came out"


@dataclass(frozen=True)
class Point:
    """One method at one budget; the ceiling has budget 0. cache: mean resident entries per layer and head over the
    trials. mean, low, high: of the metric as it is recorded, with a 95 % bootstrap interval by problem. loss: against
    the ceiling, positive where it is worse, with its interval. trials, regimes: counts over all records."""

    arm: str
    budget: int
    cache: float
    peak: float
    mean: float
    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float
    trials: int
    regimes: dict[str, int]


@dataclass(frozen=True)
class Frontier:
    """usable: method → its minimum usable budget. problems: those that every point has; left_out: those that some point
    lacks, because no token of theirs was predicted from a compressed cache. caches: (method, budget) → mean cache.
    contrasts: every two methods at each budget."""

    question: Question
    problems: int
    left_out: list[str]
    points: list[Point]
    usable: dict[str, MinimumBudget]
    crossings: list[Contrast]
    contrasts: list[Contrast]

    @property
    def caches(self) -> dict[tuple[str, int], float]:
        return {(p.arm, p.budget): p.cache for p in self.points}

    @property
    def largest(self) -> int:
        """The largest budget of the grid."""
        return max(p.budget for p in self.points)


@dataclass(frozen=True)
class Trials:
    """What is known of one arm at one budget. value, loss: problem → of each sample; mean, peak: of each trial's cache;
    regimes: of each trial."""

    value: dict[str, list[Fraction]]
    loss: dict[str, list[Fraction]]
    mean: list[Fraction]
    peak: list[Fraction]
    regimes: list[str]


def ask(path: Path, metric: str, epsilon: str, alpha: str, records: int) -> Question:
    """Write the question down in the folder, which holds so many `records` now, or read the one that is there. Raises
    DriftError when another one is."""
    known = read_question(path)
    if known is None:
        known = Question(metric=metric, epsilon=epsilon, alpha=alpha, records=records)
        path.mkdir(parents=True, exist_ok=True)
        jsonl.replace(path / FILE, json.dumps(known.model_dump(mode="json"), indent=2).encode() + b"\n")
    for field, given in (("metric", metric), ("epsilon", epsilon), ("alpha", alpha)):
        was = getattr(known, field)
        if was != given and (field == "metric" or Decimal(was) != Decimal(given)):
            raise DriftError(
                f"{path / FILE}: {field} is {getattr(known, field)}, and {given} was given; a tolerance that is "
                "changed when the outcome is known means nothing. Give the same, or replay into another folder"
            )
    return known


def read_question(path: Path) -> Question | None:
    """The question that the folder was asked; None where there is none. Raises RecordError."""
    try:
        return Question.model_validate(loads((path / FILE).read_bytes()))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RecordError(f"{FILE}: {first_fault(error, 'file', value=True)}") from None
    except ValueError as error:
        raise RecordError(f"{FILE}: not strict JSON: {error}") from None


def frontier(path: Path, question: Question) -> Frontier:
    """All that a folder of replays says about its grid. Raises RecordError when it is incomplete or holds none."""
    trials, folder = trials_of(path), read_folder(path)
    if folder is None or not trials:
        raise RecordError(f"{path.name}: holds no replays; make them with `cask-eval replay … -o {path.name}`")
    settings = folder.settings
    keys = [(CEILING, 0), *((a.name, b) for a in settings.arms for b in settings.budgets)]
    table = {key: Trials({}, {}, [], [], []) for key in keys}
    ceiling = {(t.problem, t.sample): t for t in trials if t.arm == CEILING}
    for t in trials:
        if (t.problem, t.sample) not in ceiling:
            raise RecordError(f"{path.name}: the ceiling of {t.problem} is missing; run `cask-eval replay` again")
        if t.arm == CEILING:
            own = top = t.fidelity.endpoint(question.metric.removesuffix(AFTER))
        else:
            own = t.fidelity.endpoint(question.metric)
            top = ceiling_over(path, t, ceiling[t.problem, t.sample], question.metric)
        enter(table[t.arm, t.budget], question, t.problem, own, top, Fraction(t.cache.mean), Fraction(t.cache.peak))
        table[t.arm, t.budget].regimes.append(t.regime)
    for (arm, budget), own in table.items():
        if len(own.regimes) < len(ceiling):
            raise RecordError(f"{path.name}: {arm} at budget {budget} is not complete; run `cask-eval replay` again")
    problems = list(dict.fromkeys(t.problem for t in trials))
    return judge(table, question, problems, settings.samples, {"folder": settings.model_dump(mode="json")})


def enter(row: Trials, question: Question, problem: str, own, top, mean: Fraction, peak: Fraction) -> None:
    """Add one trial, whose value is `own` and the ceiling's `top`; None where it has none."""
    row.mean.append(mean)
    row.peak.append(peak)
    if own is None or top is None:
        return
    sign = 1 if ENDPOINTS[question.metric.removesuffix(AFTER)] else -1
    row.value.setdefault(problem, []).append(Fraction(own))
    row.loss.setdefault(problem, []).append(sign * (Fraction(top) - Fraction(own)))


def judge(
    table: dict[tuple[str, int], Trials],
    question: Question,
    problems: Sequence[str],
    samples: int,
    seed: dict,
    controls: Sequence[str] = (),
) -> Frontier:
    """Points, minimum usable budgets, crossings and contrasts. `table` begins with the ceiling, under budget 0; random
    draws follow from `seed`; `controls` are methods that are drawn and not compared. Raises RecordError with fewer than
    two problems that every point has."""
    whole = [p for p in problems if all(len(row.value.get(p, [])) == samples for row in table.values())]
    if len(whole) < 2:
        raise RecordError(f"{len(whole)} problems have a {question.metric} everywhere; intervals by problem need two")
    draw = int(digest({**seed, "metric": question.metric})[7:39], 16)
    values = {key: [sum(row.value[p], Fraction()) / samples for p in whole] for key, row in table.items()}
    losses = {key: [sum(row.loss[p], Fraction()) / samples for p in whole] for key, row in table.items()}
    alpha, grid = Fraction(question.alpha), [key for key in table if key[1]]
    usable = {
        arm: minimum_budget(
            {b: losses[a, b] for a, b in grid if a == arm}, Fraction(question.epsilon), alpha=alpha, seed=draw
        )
        for arm in dict.fromkeys(arm for arm, _ in grid)
    }
    oriented = {key: [-x for x in losses[key]] for key in grid if key[0] not in controls}
    return Frontier(
        question,
        len(whole),
        [p for p in problems if p not in whole],
        [_point(key, row, values[key], losses[key], draw) for key, row in table.items()],
        usable,
        crossings(oriented, level=1 - alpha, seed=draw),
        at_one_budget(oriented, level=1 - alpha, seed=draw),
    )


def _point(key: tuple[str, int], row: Trials, values: list[Fraction], losses: list[Fraction], draw: int) -> Point:
    (low, high), (loss_low, loss_high) = (bootstrap_interval(x, 0.95, seed=draw) for x in (values, losses))
    return Point(
        *key,
        _mean(row.mean),
        _mean(row.peak),
        _mean(values),
        low,
        high,
        _mean(losses),
        loss_low,
        loss_high,
        len(row.regimes),
        {name: row.regimes.count(name) for name in sorted(set(row.regimes))},
    )


def _mean(values: Sequence[Fraction]) -> float:
    return float(sum(values, Fraction()) / len(values))
