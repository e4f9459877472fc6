"""AMS's selector: attention mass cuts the row into segments, every segment keeps its share, scores choose within."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Needs, Selection
from cask_eval.errors import MethodError
from cask_methods.attention import history
from cask_methods.selectors import quotas, segments
from cask_methods.selectors.greedy import like, overlap
from cask_methods.selectors.mass import CREDIT, TRAIT, credited, evidence, mass_of, normalised, shared

PADS = ("head_max", "mean", "none")
SEGMENTATIONS = ("mass", "uniform")


@dataclass(frozen=True)
class MassSegments:
    """The best-scored entries of every segment, per layer, sequence and KV head (https://arxiv.org/abs/2605.23200).

    1. Mass. Entries older than the newest `window` tokens have the evidence of `mass.evidence`; the window itself,
       which no full window of queries has seen, is given `pad`: the head's largest evidence (``head_max``), its
       ``mean``, or ``none``. The mass is smoothed over events by credit (trait ``credit``, 4 bytes per entry): `decay`
       and `mix`; with mix 1 there is none.
    2. Segments. Protected entries lose their mass, the candidates' is scaled to 1. Segments over all resident entries
       in logical order begin wherever the running sum reaches a multiple of `step`; those shorter than `shortest` are
       merged, those longer than `longest` are divided evenly, so that with longest ≥ 2·shortest − 1 every length lies
       between the two (a row shorter than `shortest` is one segment).
    3. Quotas. A segment's floor is min(`floor`, its length), less its protected entries, which count for it. If the
       floors fit, the rest is shared out by mass (`quotas.apportion`); if not, they are lowered (`quotas.lowered`).
       Quotas sum to the row's quota exactly.
    4. Within its segment, higher scores win, ties go to the lower position.

    A decision shared over layers or heads uses their mean mass. segmentation: ``uniform`` is a control, segments of
    equal length (1/step of them, as far as the bounds allow) and of equal weight: no queries, no credit.
    """

    name: ClassVar[str] = "mass_segments"

    window: int = 8
    step: float = 0.02
    shortest: int = 8
    longest: int = 256
    floor: int = 2
    pad: str = "head_max"
    decay: float = 0.8
    mix: float = 0.7
    segmentation: str = "mass"

    def __post_init__(self):
        if self.longest < 2 * self.shortest - 1:
            raise MethodError(
                f"segments of at least {self.shortest} and at most {self.longest} entries do not always exist; "
                f"the longest must be at least {2 * self.shortest - 1}"
            )

    @property
    def needs(self) -> Needs:
        if self.segmentation == "uniform":
            return Needs()
        return Needs(queries=self.window, traits={CREDIT: TRAIT} if self.mix < 1 else {})

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Selection:
        """Measures: ``segments``, how many a head has; ``floors_lowered``, the share of heads whose floors did not fit;
        ``top_k_overlap``, as in `Diverse`. Raises MethodError when the queries were not remembered."""
        shape, n = scores.shape, scores.shape[-1]
        resident = like(entries.resident, candidates).reshape(-1, n)
        free, length, budget = candidates.reshape(-1, n), resident.sum(-1), quota.expand(shape[:-1]).reshape(-1)
        traits = {}
        if self.segmentation == "uniform":
            starts = segments.equal(length, n, self.step, self.shortest, self.longest)
            mass = None
        else:
            mass, traits = self._mass(entries)
            mass = normalised(shared(mass, shape).reshape(-1, n).masked_fill(~free, 0))
            starts = segments.cut(mass, length, self.step)
            starts = segments.merge(starts, length, self.shortest, most=segments.most(self.step), close=True)
            starts = segments.split(starts, length, self.longest, even=True)
        numbers, width = segments.number(starts), max(1, n // self.shortest)

        size, caps = (segments.total(numbers, x.long(), width) for x in (resident, free))
        weights = caps.gt(0).double() if mass is None else segments.total(numbers, mass, width)
        floors = (size.clamp_max(self.floor) - (size - caps)).clamp_min(0)
        given = quotas.lowered(floors, weights, budget)
        given = given + quotas.apportion(weights, caps - given, budget - given.sum(-1))

        keep = within(scores.reshape(-1, n), free, numbers, given).view(shape)
        rows = (shape[0], shape[1], shape[2])
        measures = {
            "segments": starts.sum(-1).view(rows).float().mean((0, 2)),
            "floors_lowered": (floors.sum(-1) > budget).view(rows).float().mean((0, 2)),
            "top_k_overlap": overlap(keep, scores, candidates, quota),
        }
        return Selection(keep, traits=traits, measures=measures)

    def _mass(self, entries: Entries) -> tuple[Tensor, dict[str, Tensor]]:
        """The smoothed mass [L, R, H, n] fp64 over all resident entries, and the new credit."""
        past = history(entries, self.window)
        found = evidence(entries, self.window, past)
        newest = entries.resident & ~past
        if self.pad == "head_max":
            found = torch.where(newest, found.amax(-1, keepdim=True), found)
        elif self.pad == "mean":
            found = torch.where(newest, found.sum(-1, keepdim=True) / past.sum(-1, keepdim=True).clamp_min(1), found)
        mass = mass_of(found, entries.resident)
        if self.mix == 1:
            return mass, {}
        mass, credit = credited(mass, entries, self.decay, self.mix)
        return mass, {CREDIT: credit}


def within(scores: Tensor, candidates: Tensor, numbers: Tensor, given: Tensor) -> Tensor:
    """[N, n] bool: of each segment's candidates, the `given` [N, S] highest-scored; ties go to the lower position."""
    # Adding 0 turns -0.0 into 0.0, which some sorts would tell apart.
    order = torch.sort(scores + 0.0, dim=-1, descending=True, stable=True).indices
    # Candidates by segment, and by score within each; all others behind.
    segment = torch.where(candidates, numbers, given.shape[-1])
    order = order.gather(-1, torch.sort(segment.gather(-1, order), dim=-1, stable=True).indices)
    count = segments.total(numbers, candidates.long(), given.shape[-1])
    segment = segment.gather(-1, order)
    begin = torch.nn.functional.pad(count.cumsum(-1), (1, 0)).gather(-1, segment)
    quota = torch.nn.functional.pad(given, (0, 1)).gather(-1, segment)
    chosen = torch.arange(scores.shape[-1], device=scores.device) - begin < quota
    return torch.zeros_like(candidates).scatter_(-1, order, chosen)
