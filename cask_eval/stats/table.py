"""A tidy table of outcomes, one row per problem, arm and cell, read into pairs.

Numbers are read as the decimals they are written as, so that 0.3 − 0.2 and 0.2 − 0.1 are one difference. Nothing is
repaired in silence: a row that repeats, has no partner or holds no number is an error with its line, unless a rule
for absent values is stated.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Literal

from cask_eval.errors import CaskError
from cask_eval.stats.whole import whole

Missing = Literal["drop", "worst"]

#: A column whose values are 0 … 32 times some unit lies on a lattice: right answers, counts of K samples, means k/K.
COARSE = 32

_WORDS = {"true": Fraction(1), "false": Fraction(0)}


@dataclass(frozen=True)
class Layout:
    """Which column is what. arms: the baseline, then the candidates. pair: the columns that name a problem, the same
    problem in every cell. by: the columns whose values make a cell."""

    pair: tuple[str, ...]
    arm: str
    arms: tuple[str, ...]
    metrics: tuple[str, ...]
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """unit: the step of the lattice that the column's values lie on, None when it is too fine. binary: only 0 and 1."""

    name: str
    unit: Fraction | None
    binary: bool


@dataclass(frozen=True)
class Paired:
    """One metric of one candidate in one cell, paired by problem. keys, baseline, candidate: all [n]."""

    cell: tuple[str, ...]
    arm: str
    metric: Metric
    keys: tuple[tuple[str, ...], ...]
    baseline: tuple[Fraction, ...]
    candidate: tuple[Fraction, ...]
    dropped: int
    filled: int

    @property
    def differences(self) -> list[Fraction]:
        return [c - b for b, c in zip(self.baseline, self.candidate)]


def read(path: Path, layout: Layout, missing: Missing | None = None) -> list[Paired]:
    """Every cell × candidate × metric, in the order of the file, the arms and the metrics.

    A problem is absent where an arm has no row or an empty or NaN value. `drop` leaves its pair out of that cell and
    metric; `worst` counts it as 0, and is for columns of right answers; None makes it an error. A cell whose pairs
    are all dropped stays, with n = 0. Raises CaskError with the file, the line and a remedy.
    """
    _check(layout)
    table = _load(path)
    _find_columns(path, layout, next(iter(table.values())))
    found = list(dict.fromkeys(row[layout.arm] for row in table.values()))
    for arm in layout.arms:
        if arm not in found:
            raise CaskError(f"{path}: --arms {arm}: column {layout.arm} has no such value; it has {', '.join(found)}")
    table = {line: row for line, row in table.items() if row[layout.arm] in layout.arms}
    rows = _index(path, table, layout)
    metrics = [_metric(path, table, name) for name in layout.metrics]
    return [
        _pair(path, layout, rows, cell, arm, metric, values, missing)
        for cell in dict.fromkeys(cell for cell, _ in rows)
        for arm in layout.arms[1:]
        for metric, values in metrics
    ]


def _check(layout: Layout) -> None:
    if len(layout.arms) < 2:
        raise CaskError(f"--arms {','.join(layout.arms)}: name the baseline and at least one other arm")
    columns = [*layout.pair, layout.arm, *layout.by, *layout.metrics]
    for what, names in (("--arms", list(layout.arms)), ("column", columns)):
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise CaskError(f"{what} {twice} is named twice among {', '.join(names)}; name each once")
    if not layout.pair or not layout.metrics or not all([*columns, *layout.arms]):
        raise CaskError(
            "--pair, --arm-column, --arms, --by and --metrics: a name is empty; write names with commas between"
        )


def _load(path: Path) -> dict[int, dict[str, str]]:
    """Line → column → text. Not by pandas, which numbers rows and not lines, and takes the first field of a line that
    is too long for an index."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            header, rows = reader.fieldnames or [], {}
            if twice := next((n for n in header if header.count(n) > 1), None):
                raise CaskError(f"{path}: the header has {twice!r} twice; rename one of the columns")
            for row in reader:
                if None in row or None in row.values():
                    raise CaskError(f"{path} line {reader.line_num}: has not {len(header)} fields as the header has")
                rows[reader.line_num] = row
    except UnicodeDecodeError:
        raise CaskError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        raise CaskError(f"{path}: is not a CSV table: {error}; check its quotes") from None
    if not rows:
        raise CaskError(f"{path}: has no rows; the first line names the columns, every other is a row")
    return rows


def _find_columns(path: Path, layout: Layout, row: dict[str, str]) -> None:
    roles = {"--pair": layout.pair, "--arm-column": (layout.arm,), "--by": layout.by, "--metrics": layout.metrics}
    for role, names in roles.items():
        for name in names:
            if name not in row:
                raise CaskError(f"{path}: {role} {name}: there is no such column; it has {', '.join(row)}")


def _index(path: Path, table: dict[int, dict[str, str]], layout: Layout) -> dict[tuple, dict[tuple, int]]:
    """(cell, arm) → problem → line."""
    out: dict[tuple, dict[tuple, int]] = {}
    for line, row in table.items():
        cell, key = (tuple(row[name] for name in names) for names in (layout.by, layout.pair))
        arm = row[layout.arm]
        of_arm = out.setdefault((cell, arm), {})
        if key in of_arm:
            raise CaskError(
                f"{path}: lines {of_arm[key]} and {line} are both {_where(layout, cell, arm)}, "
                f"{_named(layout.pair, key)}; keep one, average them, or add the column that tells them apart to --by"
            )
        of_arm[key] = line
    return out


def _metric(path: Path, table: dict[int, dict[str, str]], name: str) -> tuple[Metric, dict[int, Fraction | None]]:
    """The column's kind and its value by line; None where there is none."""
    values = {line: _number(path, name, line, row[name]) for line, row in table.items()}
    seen = {v for v in values.values() if v is not None}
    integers, unit = whole(seen or [0])
    coarse = max(abs(integers)) <= COARSE
    return Metric(name, unit if coarse else None, seen <= {0, 1}), values


def _number(path: Path, name: str, line: int, text: str) -> Fraction | None:
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    if word in ("", "nan", "na", "null", "none"):
        return None
    try:
        value = Decimal(word)
        if value.is_finite() and abs(value.adjusted()) < 1000:
            return Fraction(value)
    except InvalidOperation:
        pass
    raise CaskError(f"{path} line {line}: {name} is {text!r}, which is no finite number; correct it or leave it empty")


def _pair(path, layout: Layout, rows, cell, arm, metric: Metric, values, missing: Missing | None) -> Paired:
    lines = [rows.get((cell, name), {}) for name in (layout.arms[0], arm)]
    keys, pairs, dropped, filled = [], [], 0, 0
    for key in dict.fromkeys([*lines[0], *lines[1]]):
        pair = [values[of_arm[key]] if key in of_arm else None for of_arm in lines]
        if None in pair:
            if missing is None:
                raise CaskError(_absent(path, layout, cell, (layout.arms[0], arm), key, metric, lines, pair))
            if missing == "drop":
                dropped += 1
                continue
            if metric.unit is None or min(v for v in values.values() if v is not None) < 0:
                raise CaskError(f"--missing worst: {metric.name} does not count right answers; use --missing drop")
            filled += pair.count(None)
            pair = [v or Fraction(0) for v in pair]
        keys.append(key)
        pairs.append(pair)
    baseline, candidate = zip(*pairs) if pairs else ((), ())
    return Paired(cell, arm, metric, tuple(keys), baseline, candidate, dropped, filled)


def _absent(path, layout: Layout, cell, arms, key, metric: Metric, lines, pair) -> str:
    i = pair.index(None)
    where, problem = _where(layout, cell, arms[i]), _named(layout.pair, key)
    if key in lines[i]:
        what = f"{path} line {lines[i][key]}: {metric.name} is empty for {where}, {problem}"
    else:
        what = f"{path}: there is no row for {where}, {problem}, but one for {arms[1 - i]} in line {lines[1 - i][key]}"
    return f"{what}; complete the table, or state a rule with --missing drop or --missing worst"


def _where(layout: Layout, cell: Sequence[str], arm: str) -> str:
    return _named((*layout.by, layout.arm), (*cell, arm))


def _named(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values))
