"""What each arm left behind in each cell, sorted out of the held-out records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from cask_eval.decide.matched import Caches, mean
from cask_eval.decide.model import ArmResult, number
from cask_eval.decide.trial import Table, Trial, Trials
from cask_eval.errors import RecordError
from cask_eval.fidelity import AFTER, ENDPOINTS
from cask_eval.fields import Param
from cask_eval.footprint import Footprint
from cask_eval.protocol.keys import bounded, full_arms
from cask_eval.protocol.model import Protocol
from cask_eval.records.model import Record


@dataclass(frozen=True)
class ArmTrials:
    """One arm in one cell. trials: problem → its trials; every registered problem is a key. prompt, footprint: as in
    `Caches`; "" and None for an arm that was not frozen."""

    samples: int
    trials: Mapping[str, list[Trial]]
    prompt: str = ""
    footprint: Footprint | None = None

    @cached_property
    def right(self) -> dict[str, int]:
        """Right samples of each problem. A missing record is wrong, and so is a failed trial, whatever its grade."""
        return {p: sum(r.right and not r.failed for r in rs) for p, rs in self.trials.items()}

    @cached_property
    def absent(self) -> dict[str, int]:
        """Samples of each problem that left no result: missing or failed."""
        return {p: self.samples - sum(not r.failed for r in rs) for p, rs in self.trials.items()}

    @property
    def every(self) -> Iterator[Trial]:
        return (r for rs in self.trials.values() for r in rs)

    @cached_property
    def caches(self) -> Caches:
        return Caches(
            samples=self.samples,
            accounts={p: [r.account for r in rs if r.account] for p, rs in self.trials.items()},
            truncated=sum(r.status == "truncated" for r in self.every),
            prompt=self.prompt,
            footprint=self.footprint,
        )

    def result(self, preset: str, params: dict[str, Param], budget: int) -> ArmResult:
        """The numbers of this arm. Those that need a residency account or an output are empty when there is none."""
        expected, correct = self.samples * len(self.trials), sum(self.right.values())
        sound, means = self.caches.every, list(self.caches.means.values())
        byte_steps = sum(a.steps * a.heads * a.entry_bytes for a in sound)
        statuses: Counter[str] = Counter()
        kept_min, kept_max, longest, bins, empty, tokens = set(), set(), set(), 0, 0, 0
        for r in self.every:
            statuses[r.status] += 1
            kept_min.add(r.kept_min)
            kept_max.add(r.kept_max)
            tokens += 0 if r.failed else r.output_tokens
            if r.regions and r.regions[0]:
                bins, empty = bins + r.regions[0], empty + r.regions[1]
                longest.add(r.regions[2])
        ran = statuses.total() - statuses["failed"]
        return ArmResult(
            preset=preset,
            params=params,
            budget=budget,
            trials=expected,
            correct=correct,
            missing=expected - statuses.total(),
            failed=statuses["failed"],
            truncated=statuses["truncated"],
            accuracy=number(Fraction(correct, expected)),
            mean_cache=_known(mean(means) if means else None),
            pooled_cache=_known(
                Fraction(sum(a.payload_bytes + a.aux_bytes for a in sound), byte_steps) if byte_steps else None
            ),
            peak_cache=_known(self.caches.peak if sound else None),
            kept_min=min(kept_min - {None}, default=None),
            kept_max=max(kept_max - {None}, default=None),
            wiped_regions=_known(Fraction(empty, bins) if bins else None),
            longest_wiped=max(longest, default=None),
            active=_known(self.caches.active),
            mean_output_tokens=_known(Fraction(tokens, ran) if ran else None),
            fidelity=self.fidelity(),
        )

    def fidelity(self) -> dict[str, str]:
        """Endpoint → its mean over the problems that have it, each a mean over its samples; empty without replays."""
        out = {}
        followed = [own for rs in self.trials.values() if (own := [r.fidelity for r in rs if r.fidelity])]
        for name in (base + after for after in ("", AFTER) for base in ENDPOINTS):
            rows = [[one.endpoint(name) for one in own] for own in followed]
            known = [mean(own) for row in rows if (own := [v for v in row if v is not None])]
            if known:
                out[name] = number(mean(known))
        return out


def sort_records(
    protocol: Protocol,
    registration: str,
    records: Iterable[Record],
    problem_ids: Sequence[str],
    arms: Collection[str],
    excluded: Callable[[Record], bool] = lambda record: False,
) -> dict[tuple[str, str], Table]:
    """(cell, arm) → problem → trials by sample, with every registered cell and problem and all of `arms` present.
    `excluded`: whether a registered rule leaves the record's problem out.

    Raises RecordError on a record that the study does not expect or that comes twice: a second answer to a
    question must not be able to hide. Raises ProtocolError when the protocol asks for too many trials.
    """
    places = [(c.name, a) for c in protocol.cells for a in arms]
    places += [(c.name, a) for c in protocol.reference_cells for a in full_arms("heldout")]
    bounded(protocol, len(arms), problem_ids)  # the tables have room for all of them
    numbers = {p: i for i, p in enumerate(problem_ids)}
    out = {place: Table(numbers, protocol.generation.samples) for place in places}
    made = Trials()
    for r in records:
        if (r.study, r.registration) != (protocol.study, registration):
            raise RecordError(
                f"record {r.key} belongs to study {r.study!r} as registered in {r.registration}, "
                f"not to {protocol.study!r} in {registration}; analyse one study's records only"
            )
        of_arm = out.get((r.cell, r.arm), {})
        if r.phase != "heldout" or r.config or r.problem not in of_arm or r.sample >= protocol.generation.samples:
            raise RecordError(
                f"record {r.key} is not a held-out trial of study {protocol.study!r}; the records file "
                "must hold registered cells, confirmed arms, registered problems and samples only"
            )
        if not of_arm.add(r.problem, made.of(r, excluded(r))):
            raise RecordError(f"record {r.key} appears twice; a trial has one result")
    return out


def _known(value: Fraction | None) -> str:
    return "" if value is None else number(value)
