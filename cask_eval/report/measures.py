"""What the methods say of themselves: means over trials of the numbers that their own code gave about its events.

They stand in the records outside of what the ledger commits to (docs/adr/0007), so they are read for the page only and
never enter the analysis document.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cask_eval.errors import RecordError
from cask_eval.records.model import Record
from cask_eval.report import format as fmt

NOTE = (
    "Numbers that a method's own code gave about its events, averaged over a trial's events and then over trials; and "
    "allocated_cache, the entries per layer and head that the trial's slot had room for in the end, padding and "
    "positions included. They are the author's word: the ledger does not commit to them, verification does not look "
    "at them, and nothing was decided by them."
)

_LARGEST = 1e300  # beyond it a mean could overflow


@dataclass(frozen=True)
class Measured:
    """The measures of one arm: the name of each, and its mean in each cell."""

    arm: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Measures:
    """The measures of all arms that gave any. `fault` says why there are none, where the records cannot be read."""

    cells: tuple[str, ...] = ()
    arms: tuple[Measured, ...] = ()
    fault: str = ""


def collect(records: Iterable[Record], cells: Sequence[str], arms: Sequence[str]) -> Measures:
    """The means over the held-out trials of these `cells` and `arms`, in their order; measures by name.

    A mean is over the trials that gave a finite number; where an arm has trials that did not, their number follows in
    brackets. Records that cannot be read are a fault, not an error: the rest of the report does not depend on them.
    """
    values: dict[tuple[str, str, str], list[float]] = {}
    trials: dict[tuple[str, str], int] = {}
    try:
        for record in records:
            where = (record.arm, record.cell)
            if record.phase != "heldout" or record.arm not in arms or record.cell not in cells:
                continue
            trials[where] = trials.get(where, 0) + 1
            for name, text in record.measures.items():
                if (value := _finite(text)) is not None:
                    values.setdefault((*where, name), []).append(value)
    except RecordError as error:
        return Measures(fault=fmt.one_line(str(error)))

    def mean(arm: str, cell: str, name: str) -> str:
        given = values.get((arm, cell, name))
        if not given:
            return fmt.DASH
        shown = fmt.significant(math.fsum(v / len(given) for v in given))
        return shown if len(given) == trials[arm, cell] else f"{shown} ({len(given):,} of {trials[arm, cell]:,})"

    names = {arm: sorted({name for a, _, name in values if a == arm}) for arm in arms}
    return Measures(
        cells=tuple(map(fmt.one_line, cells)),
        arms=tuple(
            Measured(
                fmt.one_line(arm),
                tuple((fmt.one_line(name), tuple(mean(arm, cell, name) for cell in cells)) for name in names[arm]),
            )
            for arm in arms
            if names[arm]
        ),
    )


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None  # false for NaN
