"""CASK's selector: prompt entries are evicted first, then generated ones are folded around a protected core."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Host, Needs, Selection, Trait, bound
from cask_eval.errors import MethodError
from cask_methods.phases import Markers, markers, phase_ids
from cask_methods.selectors import core as cores
from cask_methods.selectors.scratch import Folding, Outcome, Pool, fold_runs, keep_best, supports
from cask_methods.selectors.top_k import highest

COUNT = Trait(torch.int32, 1, shared=True)
"""How many tokens an entry stands for."""

_SPAN = Trait(torch.int32, -1, shared=True)


@dataclass(frozen=True)
class TwoStage:
    """One keep-set for all layers and KV heads, in two stages (CASK, docs/DEFINITIONS.md §6).

    Stage one, where the schedule leaves fewer prompt entries than there are: a reserve of evenly spread anchors, and
    the best scores among the others. (In the published code each head nominates its k best and the union is ranked by
    the maximum over heads; an entry among the k best by that maximum is among the k best of the head that attains
    it, so the outcome is the plain top-k.) All generated entries survive this stage.

    Stage two, where the generated entries still outnumber their slots: the newest stay; of the m others, which share a
    slots, a protected core stays as it is; the rest forms runs of neighbours, broken by the core and by phases of
    the text, and adjacent descriptors within a run are merged (`runs.Rule`) until all fit. When they cannot, phase
    breaks are dropped, then the mass gate, then, with core ``demote``, as many of the core's lowest ranks as it takes
    until all fit, at most all. The core stays whole with core ``hard``, and where no demotion makes all fit because
    similarities or values forbid it. What is too many then, the descriptors of lowest mass, is evicted (ties evict the
    later). An entry's support is σ = softplus(s) + 1e-4, its mass σ times the tokens it stands for.

    Two guards, as the schedule counts them: ``prefix_budget_exhausted`` keeps the last entries and nothing else,
    ``merge_inactive`` (fewer than two slots) the prompt's survivors and the newest generated entries.

    recent: newest entries that stage two leaves alone; as in the schedule.
    coverage: share of the surviving prompt entries that are evenly spread anchors, at most half of them.
    core_ratio, min_core: the core's share of the slots and its least size. core_mode: ``vote`` (every query head of
        `voters` votes for its best; votes, then scores) or ``score``.
    local_window, gate, distance: see `runs.Rule`; the gate is a multiple of the mean of the a best scores. 0 is no
        gate, and no distance. The window matters only where `gaps`.
    similarity, similarity_role: a threshold for cosines; ``rank`` prefers pairs that reach it, as published, which
        never changes the order (`runs.Rule` says why); ``forbid`` never merges others.
    promotion: entries with at least this multiple of the core's lowest score join the core while room is left; 0 is
        none.
    phases: whether phases of the text break runs. merge: False keeps core and best scores instead of merging.
    representative: the entry that a descriptor becomes: ``score_max_source`` its highest score, ties to the later;
        ``weighted_latest`` its last one.
    voters: a scorer with ``heads(entries, candidates)`` [L, R, H, G, n]. marks: what begins a phase, set by `bind`.
    """

    name: ClassVar[str] = "two_stage"

    recent: int = 8
    coverage: float = 0.0625
    core_ratio: float = 0.5
    min_core: int = 1
    core_mode: str = "vote"
    core: str = "demote"
    local_window: int = 32
    similarity: float = 0.985
    similarity_role: str = "rank"
    gate: float = 0.0
    distance: float = 0.0
    promotion: float = 0.0
    phases: bool = True
    merge: bool = True
    representative: str = "score_max_source"
    voters: Any = None
    marks: Markers | None = None

    @property
    def gaps(self) -> bool:
        """Whether generated entries can be evicted, so that spans of neighbours may lie apart. Otherwise they adjoin,
        whatever was merged, and need not be remembered."""
        return self.merge and (self.core == "hard" or self.similarity_role == "forbid" or bool(self.distance))

    @property
    def needs(self) -> Needs:
        """What merged entries stand for; a span of -1 is the entry's own position."""
        count, spans = {"count": COUNT}, {"span_low": _SPAN, "span_high": _SPAN}
        return Needs(traits={**(count if self.merge else {}), **(spans if self.gaps else {})})

    def bind(self, host: Host) -> TwoStage:
        """Raises MethodError when phases are wanted and there is no tokenizer to find them."""
        if self.phases and self.merge and host.encode is None:
            raise MethodError(
                "phases of the text are found by their token ids, and this model comes without a tokenizer; give "
                "one, or set the parameter phases to false"
            )
        marks = markers(host.encode) if self.phases and self.merge else ()
        return replace(self, voters=bound(self.voters, host), marks=marks)

    def select(self, scores: Tensor, candidates: Tensor, quota: Tensor, entries: Entries) -> Selection:
        """`scores`, `candidates`: [1, R, 1, n], the candidates being all resident entries; `quota` [1, R, 1], how many
        stay.

        traits: the spans where kept. notes: ``support`` σ for the representation. measures of stage two, NaN for a row
        without it: core_size; core_demoted; descriptors; folded, the entries they stand for; dropped, those evicted
        because descriptors outnumbered slots; with S the a candidates of highest score, rho_core = Σ_core σ / Σ_S σ and
        rho_kept = Σ_kept σ / Σ_S σ; lost_mass, the share of the candidates' mass that is not the kept ones' own.

        Raises MethodError under another schedule than ``two_stage``, before `bind`, and for scores that layers or
        heads do not share; FloatingPointError when scores or keys are not finite.
        """
        if entries.prefix is None or entries.prefix_kept is None:
            raise MethodError("two-stage selection needs a schedule with prompt 'two_stage'")
        if scores.shape[0] != 1 or scores.shape[2] != 1:
            raise MethodError("two-stage selection decides for all layers and heads at once and needs shared scores")
        s, resident = scores[0, :, 0], candidates[0, :, 0]
        if not bool(torch.isfinite(s.masked_fill(~resident, 0)).all()):
            raise FloatingPointError("two-stage selection met scores that are not finite")
        plan = Plan.of(resident.sum(-1), entries.prefix, entries.prefix_kept, quota[0, :, 0], self.recent)
        index = torch.arange(s.shape[1], device=s.device)
        keep = self._prompt(s, resident, index, plan) | (resident & (index >= (plan.count - plan.tail)[:, None]))
        into = torch.where(keep, index, -1)
        traits, notes = {}, {"support": supports(s).float()[None, :, None]}
        measures: dict[str, Tensor] = {}
        at = plan.merges.nonzero().squeeze(-1)
        if len(at):
            rows = entries if len(at) == len(s) else entries.rows(at)
            numbers = plan.prefix[at], plan.pool[at], plan.slots[at]
            pool = Pool.of(rows, s[at], *numbers, with_values=self.merge and bool(self.distance))
            done = self._stage_two(pool)
            keep[at] = pool.spread(done.kept, keep[at])
            into[at] = pool.spread(torch.where(done.into < 0, -1, done.into + pool.first[:, None]), into[at])
            if self.gaps:
                for name, span in (("span_low", done.low), ("span_high", done.high)):
                    held = traits[name] = entries.traits[name].clone()
                    span = torch.where(span == pool.entries.positions[0, :, 0], -1, span)
                    held[0, at, 0] = pool.spread(span, held[0, at, 0])
            for name, value in _measures(pool, done, self.merge).items():
                measures[name] = s.new_full(plan.count.shape, torch.nan)
                measures[name][at] = value.to(s.dtype)
        keep, into = keep[None, :, None], into[None, :, None]
        return Selection(keep, into if self.merge else None, traits, notes, measures)

    def _prompt(self, s: Tensor, resident: Tensor, index: Tensor, plan: Plan) -> Tensor:
        """[R, n] bool: the prompt entries that stay."""
        prompt = resident & (index < plan.prefix[:, None])
        anchored = anchors(plan.prefix, plan.survivors, self.coverage, s.shape[1])
        best = highest(s, prompt & ~anchored, plan.survivors - anchored.sum(-1))
        return torch.where((plan.survivors < plan.prefix)[:, None], anchored | best, prompt)

    def _stage_two(self, pool: Pool) -> Outcome:
        size = cores.core_budget(pool.slots, pool.count, self.core_ratio, self.min_core)
        ballots = None
        if self.core_mode == "vote":
            competing = pool.valid[None, :, None].expand(pool.entries.positions.shape)
            ballots = cores.votes(self.voters.heads(pool.entries, competing), pool.valid, size)
        order = cores.ranking(pool.scores, pool.valid, ballots)
        if self.promotion:
            order, size = cores.promote(order, size, pool.scores, pool.valid, pool.slots, self.promotion)
        if not self.merge:
            return keep_best(pool, order, size)
        least = self.similarity if self.similarity_role == "forbid" else -math.inf
        window = self.local_window if self.gaps else None
        how = Folding(self.core, window, self.gate, self.distance, least, self.representative)
        return fold_runs(pool, order, size, self._same_phase(pool), how)

    def _same_phase(self, pool: Pool) -> Tensor:
        """[R, M] bool: whether a candidate and the next one lie in the same phase of the text."""
        if not self.phases:
            return torch.ones_like(pool.valid)
        if self.marks is None or pool.entries.tokens is None:
            raise MethodError("phases of the text need the tokenizer (bind the method to a model) and the tokens")
        phase = phase_ids(pool.entries.tokens, pool.entries.prompt_tokens, self.marks)
        phase = phase.gather(-1, pool.entries.positions[0, :, 0])
        return phase == torch.cat([phase[:, 1:], phase[:, -1:]], -1)


@dataclass(frozen=True)
class Plan:
    """An event in integers, [R] each (docs/DEFINITIONS.md §6).

    count: entries before the event. prefix: those that count as prompt; survivors: how many of them stay. tail: how
    many of the last entries stay whatever their score. pool: generated entries that compete for `slots` places.
    merges: whether they do.
    """

    count: Tensor
    prefix: Tensor
    survivors: Tensor
    tail: Tensor
    pool: Tensor
    slots: Tensor
    merges: Tensor

    @classmethod
    def of(cls, count: Tensor, prefix: Tensor, kept: Tensor, target: Tensor, recent: int) -> Plan:
        """kept: [R], entries that count as prompt after the event. target: [R], entries that it leaves."""
        generated, free = count - prefix, target - kept
        crowded = generated > free
        newest = generated.clamp_max(recent)
        newest = torch.where(crowded & (newest >= free), (free - 2).clamp_min(0), newest)
        pool, slots = generated - newest, free - newest
        exhausted = crowded & (free <= 0)
        merges = crowded & (slots >= 2)
        # A guard keeps what fits of the end: of everything, or of what was generated.
        tail = torch.where(merges, newest, torch.where(exhausted, target, torch.where(crowded, free, generated)))
        return cls(count, prefix, torch.where(exhausted, 0, kept), tail, pool, slots, merges)


def anchors(prefix: Tensor, survivors: Tensor, coverage: float, n: int) -> Tensor:
    """[R, n] bool: the coverage reserve, min(⌊P*/2⌋, round(coverage·P*)) of the `prefix` P [R] first entries at
    rounded equal steps from 0 to P − 1; P* = `survivors` [R]. Halves are rounded to even."""
    count = torch.minimum(survivors // 2, (survivors.double() * coverage).round().long())[:, None]
    i = torch.arange(n // 2 + 1, device=prefix.device)
    at = (i * (prefix - 1)[:, None] / (count - 1).clamp_min(1).double()).round().long()
    at = torch.where(i < count, at, n)
    return torch.zeros(len(prefix), n + 1, dtype=torch.bool, device=prefix.device).scatter_(-1, at, True)[:, :n]


def _measures(pool: Pool, done: Outcome, merged: bool) -> Mapping[str, Tensor]:
    support, size = supports(pool.scores), done.core.sum(-1)
    best = (support * pool.best()).sum(-1)
    beside = pool.valid & ~done.core
    none = torch.zeros_like(size)
    return {
        "core_size": size,
        "core_demoted": done.wanted - size,
        "descriptors": (done.kept & beside).sum(-1) if merged else none,
        "folded": ((done.into >= 0) & beside).sum(-1) if merged else none,
        "dropped": ((done.into < 0) & beside).sum(-1) if merged else none,
        "rho_core": (support * done.core).sum(-1) / best,
        "rho_kept": (support * done.kept).sum(-1) / best,
        "lost_mass": 1 - (pool.mass * done.kept).sum(-1) / pool.mass.sum(-1),
    }
