"""What the analysis keeps of a record: some forty bytes, where the record with its output has thousands."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from cask_eval.fidelity import AFTER, ENDPOINTS
from cask_eval.records.keys import Numbers
from cask_eval.records.model import FidelityRecord, RatesRecord, Record
from cask_eval.residency import Residency


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of an arm. `right`: whether the grader said so; `account`: as `Record.account`, and None where the
    trial failed; `regions`: bins, how many of them were empty, and the longest run, as in `RegionsRecord`; `excluded`:
    whether a registered rule leaves its problem out."""

    sample: int
    status: str
    right: bool
    output_tokens: int
    kept_min: int | None
    kept_max: int | None
    regions: tuple[int, int, int] | None
    fidelity: Followed | None
    account: Residency | None
    excluded: bool = False

    @property
    def failed(self) -> bool:
        return self.status == "failed"


@dataclass(frozen=True, slots=True)
class Followed:
    """How a replay followed its reference: `FidelityRecord` without what is not compared, in billionths, which is what
    stands there. In the order of `ENDPOINTS`; `after` is None where nothing was compressed."""

    whole: tuple[int, ...]
    after: tuple[int, ...] | None

    @classmethod
    def of(cls, found: FidelityRecord) -> Followed:
        return cls(_billionths(found.whole), found.after and _billionths(found.after))

    def endpoint(self, name: str) -> Fraction | None:
        """As `FidelityRecord.endpoint`."""
        rates = self.after if name.endswith(AFTER) else self.whole
        return None if rates is None else Fraction(rates[_PLACE[name.removesuffix(AFTER)]], 10**9)


def _billionths(rates: RatesRecord) -> tuple[int, ...]:
    return tuple(int(getattr(rates, name).replace(".", "")) for name in ENDPOINTS)


_PLACE = {name: i for i, name in enumerate(ENDPOINTS)}


class Trials:
    """Makes trials of records. Accounts that are equal become one, and so do equal events: most of an account are its
    events, and under one schedule they repeat from trial to trial."""

    def __init__(self) -> None:
        self._accounts: dict[tuple, Residency] = {}
        self._events: dict[tuple[int, int, int], tuple[int, int, int]] = {}

    def of(self, r: Record, excluded: bool = False) -> Trial:
        regions = r.regions and (r.regions.bins, r.regions.empty, r.regions.longest)
        account = self._account(r) if r.status != "failed" else None
        return Trial(r.sample, sys.intern(r.status), r.grade.correct, r.output_tokens, r.kept_min, r.kept_max, regions,
                     r.fidelity and Followed.of(r.fidelity), account, excluded)  # fmt: skip

    def _account(self, r: Record) -> Residency | None:
        own = r.account()
        if own is None:
            return None
        for part in (own, *own.chains):
            part.events = [self._events.setdefault(event, event) for event in part.events]
        look = own.prompt_tokens, own.steps, own.payload_bytes, own.aux_bytes, len(own.events), len(own.chains)
        known = self._accounts.setdefault(look, own)
        return known if known == own else own


class Table(Mapping[str, list[Trial]]):
    """Problem → its trials by sample, of one arm in one cell. They are kept by columns, in places that are there from
    the start, and made into objects when they are asked for. `places`: each problem's number; tables of the same
    problems share it."""

    def __init__(self, places: Mapping[str, int], samples: int) -> None:
        self._places, self._samples = places, samples
        size = len(places) * samples
        # Which of `_kinds` and `_accounts`, counted from 1; 0 is none. Three numbers for regions, -1 for none.
        self._kind, self._account = array("I", bytes(4 * size)), array("I", bytes(4 * size))
        self._tokens = array("q", bytes(8 * size))
        self._regions = array("q", b"\xff" * (24 * size))
        self._fidelity: dict[int, Followed] = {}
        self._kinds, self._accounts = Numbers(), Numbers()

    def add(self, problem: str, trial: Trial) -> bool:
        """Whether there was none of its problem and sample before."""
        at = self._places[problem] * self._samples + trial.sample
        if self._kind[at]:
            return False
        kind = trial.status, trial.right, trial.kept_min, trial.kept_max, trial.excluded
        self._kind[at] = 1 + self._kinds.of(kind)
        self._tokens[at] = trial.output_tokens
        if trial.account is not None:
            self._account[at] = 1 + self._accounts.of(trial.account, by=id(trial.account))
        if trial.regions is not None:
            self._regions[3 * at : 3 * at + 3] = array("q", trial.regions)
        if trial.fidelity is not None:
            self._fidelity[at] = trial.fidelity
        return True

    def __getitem__(self, problem: str) -> list[Trial]:
        first = self._places[problem] * self._samples
        return [self._trial(at, sample) for sample, at in enumerate(range(first, first + self._samples))
                if self._kind[at]]  # fmt: skip

    def _trial(self, at: int, sample: int) -> Trial:
        status, right, kept_min, kept_max, excluded = self._kinds.values[self._kind[at] - 1]
        regions, account = tuple(self._regions[3 * at : 3 * at + 3]), self._account[at]
        return Trial(sample, status, right, self._tokens[at], kept_min, kept_max,
                     regions if regions[0] >= 0 else None, self._fidelity.get(at),
                     self._accounts.values[account - 1] if account else None, excluded)  # fmt: skip

    def __contains__(self, problem: object) -> bool:
        return problem in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Without(Mapping[str, list[Trial]]):
    """A table without some of its problems."""

    def __init__(self, table: Mapping[str, list[Trial]], problems: set[str]) -> None:
        self._table, self._problems = table, problems

    def __getitem__(self, problem: str) -> list[Trial]:
        if problem in self._problems:
            raise KeyError(problem)
        return self._table[problem]

    def __iter__(self) -> Iterator[str]:
        return (problem for problem in self._table if problem not in self._problems)

    def __len__(self) -> int:
        return sum(1 for _ in self)
