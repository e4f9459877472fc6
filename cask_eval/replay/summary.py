"""A folder of replays as a table: one row for each arm and budget, beside the ceiling. No torch.

Means are over records, each counting alike. A difference is the arm's minus the ceiling's, paired by problem and
sample, with a t interval whose clusters are the problems. After the first event an arm is compared with the ceiling
over the same tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from cask_eval.errors import RecordError
from cask_eval.fidelity import AFTER, Fidelity, Tokens, summarise
from cask_eval.records.tokens import TokenFile, digest_of
from cask_eval.replay.records import CEILING, Trial, read, read_folder
from cask_eval.stats.t_interval import t_interval

METRICS = ("top1", "top5", "nll", "kl")
DIFFERENCES = ("top1", "nll", f"top1{AFTER}", f"nll{AFTER}")


@dataclass(frozen=True)
class Difference:
    """Arm minus ceiling over `n` pairs; low, high: ends of the 95 % interval, None with fewer than two problems."""

    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """means: metric, or metric + `AFTER` → mean over the records that have it; None where none has. after: records with
    tokens predicted from a compressed cache. events: prompt events and others, means per record. regimes: how many
    records are of which."""

    arm: str
    budget: int
    problems: int
    records: int
    tokens: int
    means: dict[str, float | None]
    after: int
    first_mismatch: float
    mean_cache: float
    peak_cache: float
    terminal_cache: float
    saved: float
    prefix_events: float
    decode_events: float
    regimes: dict[str, int]
    differences: dict[str, Difference]


def trials_of(folder: Path) -> list[Trial]:
    """All records of a folder: the ceiling, then the arms as they were named, each by problem and sample. The order of
    the file is that of the run, which is another one on several machines. Raises RecordError."""
    found, about = list(read(folder / "records.jsonl", Trial)), read_folder(folder)
    arms = [CEILING, *(arm.name for arm in about.settings.arms)] if about else []
    place = {arm: number for number, arm in enumerate(arms)}
    return sorted(found, key=lambda t: (place.get(t.arm, len(place)), t.budget, t.problem, t.sample))


def tokens_of(folder: Path, trial: Trial) -> Tokens:
    """A trial's numbers per token. Raises RecordError when they are not there, or not those that the record commits
    to."""
    name = f"{trial.arm}@{trial.budget}" if trial.budget else trial.arm
    found = TokenFile(folder / "tokens" / f"{name}.safetensors").read(
        ("", trial.problem, trial.sample), compressed_from(trial)
    )
    if found is None or digest_of(found) != trial.fidelity.arrays:
        raise RecordError(f"tokens/{name}.safetensors: {trial.problem} is missing or changed; restore it")
    return found


def compressed_from(trial: Trial) -> list[int]:
    """By chain, the first token that was predicted from a compressed cache: what follows it was, too."""
    if not trial.chains:
        return [trial.tokens - (trial.fidelity.after.tokens if trial.fidelity.after else 0)]
    return [c.events[0][0] + 1 if c.events else trial.tokens for c in trial.chains]


def table(folder: Path) -> list[Row]:
    """Rows in the order of `trials_of`: the ceiling first. Raises RecordError."""
    trials = trials_of(folder)
    ceiling = {(t.problem, t.sample): t for t in trials if t.arm == CEILING}
    grid: dict[tuple[str, int], list[Trial]] = {}
    for t in trials:
        grid.setdefault((t.arm, t.budget), []).append(t)
    return [_row(folder, arm, budget, some, ceiling) for (arm, budget), some in grid.items()]


def _row(folder: Path, arm: str, budget: int, trials: list[Trial], ceiling: dict) -> Row:
    names = [m + s for s in ("", AFTER) for m in METRICS]
    values = {n: [v for t in trials if (v := t.fidelity.endpoint(n)) is not None] for n in names}
    return Row(
        arm=arm,
        budget=budget,
        problems=len({t.problem for t in trials}),
        records=len(trials),
        tokens=sum(t.tokens for t in trials),
        means={n: _mean(v) if v else None for n, v in values.items()},
        after=sum(t.fidelity.after is not None for t in trials),
        first_mismatch=_mean(t.fidelity.first_mismatch for t in trials),
        mean_cache=_mean(Fraction(t.cache.mean) for t in trials),
        peak_cache=_mean(Fraction(t.cache.peak) for t in trials),
        terminal_cache=_mean(t.cache.terminal for t in trials),
        saved=_mean(Fraction(t.cache.reference_terminal_saved_ratio) for t in trials),
        prefix_events=_mean(t.stages.prefix_events for t in trials),
        decode_events=_mean(t.stages.decode_events for t in trials),
        regimes=dict(sorted(Counter(t.regime for t in trials).items())),
        differences=_differences(folder, trials, ceiling) if arm != CEILING else {},
    )


def _differences(folder: Path, trials: list[Trial], ceiling: dict) -> dict[str, Difference]:
    pairs = [(t, ceiling[t.problem, t.sample]) for t in trials if (t.problem, t.sample) in ceiling]
    matched = {t.key: _same_tokens(folder, t, c) for t, c in pairs if t.fidelity.after}
    out = {}
    for name in DIFFERENCES:
        rows = []
        for t, c in pairs:
            if not name.endswith(AFTER):
                rows.append((t.problem, t.fidelity.endpoint(name) - c.fidelity.endpoint(name)))
            elif t.key in matched:
                rows.append((t.problem, float(t.fidelity.endpoint(name)) - matched[t.key].endpoint(name)))
        if rows:
            out[name] = _difference(rows)
    return out


def ceiling_over(folder: Path, trial: Trial, ceiling: Trial, metric: str) -> Fraction | float | None:
    """The ceiling's value of a metric over the tokens that the trial's own is over; None where there are none."""
    if not metric.endswith(AFTER):
        return ceiling.fidelity.endpoint(metric)
    return _same_tokens(folder, trial, ceiling).endpoint(metric) if trial.fidelity.after else None


def _same_tokens(folder: Path, trial: Trial, ceiling: Trial) -> Fidelity:
    """The ceiling, with those tokens as `after` that the arm predicted from a compressed cache."""
    own, starts = tokens_of(folder, ceiling), compressed_from(trial)
    mask = np.arange(trial.tokens)[None] >= np.array(starts)[:, None]
    repeated = (np.repeat(a, len(starts), 0) for a in (own.nll, own.rank, own.kl))
    return summarise(Tokens(*repeated, mask))


def _difference(rows: Sequence[tuple[str, Fraction | float]]) -> Difference:
    clusters, values = [problem for problem, _ in rows], [value for _, value in rows]
    low, high = t_interval(values, 0.95, clusters) if len(set(clusters)) > 1 else (None, None)
    return Difference(len(rows), _mean(values), low, high)


def _mean(values: Iterable) -> float:
    values = [Fraction(v) for v in values]
    return float(sum(values) / len(values))
