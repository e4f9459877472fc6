"""Fidelity against memory over a grid of methods and budgets: each point with its interval, the minimum usable budget
of each method, and every crossing. No torch.

Problems are the unit: the samples of one are averaged. Values are oriented so that more is better, and losses are taken
against the ceiling over the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from cask_eval import jsonl
from cask_eval.canonical import digest, loads
from cask_eval.errors import DriftError, RecordError
from cask_eval.fidelity import AFTER, ENDPOINTS
from cask_eval.fields import Digest, Strict, first_fault
from cask_eval.replay.records import CEILING, Trial, read_folder
from cask_eval.replay.summary import ceiling_over, trials_of
from cask_eval.stats.frontier import Crossing, MinimumBudget, crossings, minimum_budget
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
            return "written down before anything was replayed"
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
    lacks, because no token of theirs was predicted from a compressed cache. caches: (method, budget) → mean cache."""

    question: Question
    folder: Digest
    problems: int
    left_out: list[str]
    points: list[Point]
    usable: dict[str, MinimumBudget]
    crossings: list[Crossing]

    @property
    def caches(self) -> dict[tuple[str, int], float]:
        return {(p.arm, p.budget): p.cache for p in self.points}


def ask(path: Path, metric: str, epsilon: str, alpha: str) -> Question:
    """Write the question down in the folder, or read the one that is there. Raises DriftError when another one is."""
    known = read_question(path)
    if known is None:
        records = len(trials_of(path)) if path.exists() else 0
        known = Question(metric=metric, epsilon=epsilon, alpha=alpha, records=records)
        path.mkdir(parents=True, exist_ok=True)
        jsonl.replace(path / FILE, json.dumps(known.model_dump(mode="json"), indent=2).encode() + b"\n")
    for field, given in (("metric", metric), ("epsilon", epsilon), ("alpha", alpha)):
        if getattr(known, field) != given:
            raise DriftError(
                f"{path.name}/{FILE}: {field} is {getattr(known, field)}, and {given} was given; a tolerance that is "
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
    """Everything that the folder says about its grid. Raises RecordError when it is incomplete or holds no grid."""
    trials = trials_of(path)
    folder = read_folder(path)
    if folder is None or not trials:
        raise RecordError(f"{path.name}: holds no replays; make them with `cask-eval replay … -o {path.name}`")
    seed = int(digest({"folder": folder.settings.model_dump(mode="json"), "metric": question.metric})[7:39], 16)
    values, losses, left_out = _grid(path, trials, question.metric, folder.settings.arms, folder.settings.budgets)
    count = len(next(iter(losses.values())))
    if count < 2:
        raise RecordError(f"{path.name}: {count} problems have a {question.metric}; intervals by problem need two")
    points = [_point(key, trials, values[key], losses.get(key), seed) for key in values]
    usable = {}
    for arm in (a.name for a in folder.settings.arms):
        own = {b: losses[arm, b] for b in folder.settings.budgets}
        usable[arm] = minimum_budget(own, Fraction(question.epsilon), alpha=Fraction(question.alpha), seed=seed)
    oriented = {key: [-x for x in row] for key, row in losses.items()}
    found = crossings(oriented, level=1 - Fraction(question.alpha), seed=seed)
    return Frontier(
        question, digest(folder.settings.model_dump(mode="json")), count, left_out, points, usable, found
    )


def _grid(path: Path, trials: Sequence[Trial], metric: str, arms, budgets):
    """((arm, budget) → value [n], the same → loss [n], problems left out). The ceiling is among the values only, under
    budget 0. Raises RecordError on a trial that is missing."""
    ceiling = {(t.problem, t.sample): t for t in trials if t.arm == CEILING}
    keys = [(CEILING, 0), *((a.name, b) for a in arms for b in budgets)]
    value: dict[tuple, dict[str, list[Fraction]]] = {key: {} for key in keys}
    loss: dict[tuple, dict[str, list[Fraction]]] = {key: {} for key in keys}
    sign = 1 if ENDPOINTS[metric.removesuffix(AFTER)] else -1
    for t in trials:
        if (t.problem, t.sample) not in ceiling:
            raise RecordError(f"{path.name}: the ceiling of {t.problem} is missing; run `cask-eval replay` again")
        if t.arm == CEILING:
            own = top = t.fidelity.endpoint(metric.removesuffix(AFTER))
        else:
            own, top = t.fidelity.endpoint(metric), ceiling_over(path, t, ceiling[t.problem, t.sample], metric)
        if own is None or top is None:
            continue
        value[t.arm, t.budget].setdefault(t.problem, []).append(Fraction(own))
        loss[t.arm, t.budget].setdefault(t.problem, []).append(sign * (Fraction(top) - Fraction(own)))
    problems = list(dict.fromkeys(t.problem for t in trials))
    samples = len(ceiling) // len(problems)
    short = {key for key in keys if sum(t.arm == key[0] and t.budget == key[1] for t in trials) < len(ceiling)}
    if short:
        arm, budget = min(short)
        raise RecordError(f"{path.name}: {arm} at budget {budget} is not complete; run `cask-eval replay` again")
    whole = [p for p in problems if all(len(value[key].get(p, [])) == samples for key in keys)]

    def means(table: dict[str, list[Fraction]]) -> list[Fraction]:
        return [sum(table[p], Fraction()) / samples for p in whole]

    return (
        {key: means(value[key]) for key in keys},
        {key: means(loss[key]) for key in keys[1:]},
        [p for p in problems if p not in whole],
    )


def _point(key, trials: Sequence[Trial], values: list[Fraction], losses: list[Fraction] | None, seed: int) -> Point:
    arm, budget = key
    own = [t for t in trials if (t.arm, t.budget) == key]
    lost = losses or [Fraction(0)] * len(values)
    (low, high), (loss_low, loss_high) = (bootstrap_interval(x, 0.95, seed=seed) for x in (values, lost))
    return Point(
        arm,
        budget,
        _mean(Fraction(t.cache.mean) for t in own),
        _mean(Fraction(t.cache.peak) for t in own),
        _mean(values),
        low,
        high,
        _mean(lost),
        loss_low,
        loss_high,
        len(own),
        {name: sum(t.regime == name for t in own) for name in sorted({t.regime for t in own})},
    )


def _mean(values) -> float:
    values = list(values)
    return float(sum(values, Fraction()) / len(values))
