"""What the analysis keeps of a record: a few hundred bytes, where the record with its output has thousands."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction

from cask_eval.fidelity import AFTER, ENDPOINTS
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
