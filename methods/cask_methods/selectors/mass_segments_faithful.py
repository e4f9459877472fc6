"""AMS's selector as its authors ship it, repairs and truncation included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Needs, Selection
from cask_eval.errors import MethodError
from cask_methods.selectors import quotas, segments
from cask_methods.selectors.greedy import overlap
from cask_methods.selectors.mass import CREDIT, TRAIT, credited, evidence, mass_of
from cask_methods.selectors.mass_segments import within
from cask_methods.selectors.top_k import highest


@dataclass(frozen=True)
class MassSegmentsFaithful:
    """The published algorithm (https://arxiv.org/abs/2605.23200), for comparison with `MassSegments`.

    1. Mass as there, over all entries of the row; the newest `window` entries are given the largest evidence of the
       layer, over all KV heads.
    2. Segments begin where the mass reaches multiples of `step`; pieces of `longest` are cut from longer ones; those
       shorter than `shortest` take in the next ones, so that the last may stay short and one may exceed `longest`.
    3. Quotas start at min(`floor`, length). If they exceed the budget b, 1 is taken from each in a circle, down to 1;
       if not, each is given round((b − Σ)·its mass), halves to even, at most its length, and ±1 in a circle from the
       first segment mends the sum.
    4. The best-scored entries of each segment. Then the first `sink` and the last `last` entries are forced in, and
       the lowest-scored of the others, wherever they lie, dropped until b are left: quotas and floors need not hold.

    Departures: every sequence has its own mass (the published code averages over a batch, which at batch size 1, its
    authors' setting, is the same) and ties go to the lower position. Where it would loop forever, because no quota
    may be lowered any more and they still exceed b, a MethodError is raised; for `floor` 0 that reads the lower bound
    of 1 into the second circle too. Scores that are shared over layers or heads are given to each of them, as in the
    published code: the kept sets then differ by segments alone.
    """

    name: ClassVar[str] = "mass_segments_faithful"

    window: int = 32
    step: float = 0.02
    shortest: int = 32
    longest: int = 1024
    floor: int = 8
    sink: int = 4
    last: int = 32
    decay: float = 0.8
    mix: float = 0.7

    @property
    def needs(self) -> Needs:
        return Needs(queries=self.window, traits={CREDIT: TRAIT})

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Selection:
        """Measures: ``segments``, how many a head has; ``broken_quotas``, the share of them that keep fewer than their
        quota; ``top_k_overlap``, as in `Diverse`. Raises MethodError when some entries are protected from outside,
        when the forced entries exceed the quota, and where the published code does not terminate."""
        resident = entries.resident
        shape, n = resident.shape, resident.shape[-1]
        if bool((resident != candidates).any()):
            raise MethodError("the published AMS knows no protection but its own sink and last entries")
        # Where the scores are shared over heads, each still has its own segments.
        scores, candidates = scores.expand(shape), resident
        free, budget = candidates.reshape(-1, n), quota.expand(shape[:-1]).reshape(-1)
        length, here = free.sum(-1), torch.arange(n, device=scores.device)
        forced = free & ((here < self.sink) | (here >= (length - self.last)[:, None]))
        if bool((forced.sum(-1) > budget).any()):
            raise MethodError(
                f"the published AMS forces {self.sink} first and {self.last} last entries in, more than the least "
                f"budget, {int(budget.min())}"
            )
        mass, credit = self._mass(entries)
        mass = mass.reshape(-1, n)
        starts = segments.cut(mass, length, self.step)
        starts = segments.split(starts, length, self.longest, even=False)
        bound = segments.most(self.step) + n // self.longest
        starts = segments.merge(starts, length, self.shortest, most=bound, close=False)
        numbers, scores = segments.number(starts), scores.reshape(-1, n)
        size, weights = segments.total(numbers, free.long(), n), segments.total(numbers, mass, n)
        given = self._quotas(size, weights, budget)

        chosen = within(scores, free, numbers, given)
        spare = chosen & ~forced
        keep = forced | highest(scores, spare, budget - forced.sum(-1))
        broken = segments.total(numbers, keep.long(), n) < given
        broken, count = (x.view(*shape[:3], -1).sum((0, 2, 3)) for x in (broken, starts))
        keep = keep.view(shape)
        measures = {
            "segments": starts.sum(-1).view(shape[:3]).float().mean((0, 2)),
            "broken_quotas": broken / count.clamp_min(1),
            "top_k_overlap": overlap(keep, scores.view(shape), candidates, quota.expand(shape[:-1])),
        }
        return Selection(keep, traits={CREDIT: credit}, measures=measures)

    def _mass(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """The smoothed mass [L, R, H, n] fp64 over all resident entries, and the new credit."""
        resident = entries.resident
        here = torch.arange(resident.shape[-1], device=resident.device)
        past = resident & (here < resident.sum(-1, keepdim=True) - self.window)
        found = evidence(entries, self.window, past)
        found = torch.where(resident & ~past, found.amax((2, 3), keepdim=True), found)
        return credited(mass_of(found, resident), entries, self.decay, self.mix)

    def _quotas(self, size: Tensor, weights: Tensor, budget: Tensor) -> Tensor:
        """[N, S] int64 for segments of `size` [N, S] entries; 0 where there is none."""
        start = size.clamp_max(self.floor)
        rest = budget - start.sum(-1)
        share = weights / weights.sum(-1, keepdim=True)
        grown = start + (rest.clamp_min(0)[:, None] * share).round().long()
        given = torch.where(rest[:, None] > 0, grown.minimum(size), start)
        off = budget - given.sum(-1)
        more = quotas.in_turn(size - given, off.clamp_min(0))
        less = quotas.in_turn((given - 1).clamp_min(0), (-off).clamp_min(0))
        if bool((less.sum(-1) != (-off).clamp_min(0)).any()):
            count = int((size > 0).sum(-1).max())
            raise MethodError(
                f"the published AMS does not terminate here: {count} segments of at least 1 entry each exceed a budget "
                f"of {int(budget.min())}. Raise the budget, mass_step or l_min, or use ams"
            )
        return given + more - less
