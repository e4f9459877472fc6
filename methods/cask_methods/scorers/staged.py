"""TriAttention's scores for CASK: prompt and generated entries are standardised apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Host
from cask_eval.errors import MethodError
from cask_methods.scorers.triattention import TriAttentionScorer
from cask_methods.selectors.two_stage import Plan
from cask_methods.standardise import standardise

_CHUNK_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Staged:
    """s_j = max over all layers and query heads of TriAttention's score (docs/DEFINITIONS.md §6), one for all of them.

    With `base.normalise`, a query head's score is a z-score among the entries that compete in the same stage: the
    entries counted as prompt (`Entries.prefix`) among themselves, the generated ones among those that stage two does
    not leave alone as the newest (among all generated ones where there are no others). That is `recent` of them, or
    fewer where the prompt leaves too little room (§1.4).
    """

    name: ClassVar[str] = "triattention_staged"
    calibrated: ClassVar[bool] = True

    base: TriAttentionScorer = TriAttentionScorer(mode="global")
    recent: int = 0

    def bind(self, host: Host) -> Staged:
        return replace(self, base=self.base.bind(host))

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """[1, R, 1, n] fp32. Raises MethodError before `bind` and under a schedule without a prefix."""
        if entries.prefix is None or entries.prefix_kept is None or entries.target is None:
            raise MethodError("scores in stages need a schedule with prompt 'two_stage'")
        rows, n = candidates.shape[1], candidates.shape[-1]
        step = max(1, _CHUNK_ELEMENTS // (entries.geometry.layers * entries.geometry.query_heads * n))
        parts = [
            self._rows(entries.rows(slice(i, i + step)), candidates[:, i : i + step]) for i in range(0, rows, step)
        ]
        return torch.cat(parts, 1)

    def heads(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Raw scores of every query head, [L, R, H, G, n]; 0 where `candidates` [L, R, H, n] is False."""
        return replace(self.base, normalise=False).heads(entries, candidates)

    def _rows(self, entries: Entries, candidates: Tensor) -> Tensor:
        scores = self.heads(entries, candidates)
        if self.base.normalise:
            index = torch.arange(candidates.shape[-1], device=candidates.device)
            prompt = candidates & (index < entries.prefix.view(1, -1, 1, 1))
            generated = candidates & ~prompt
            count = candidates[0, :, 0].sum(-1)
            plan = Plan.of(count, entries.prefix, entries.prefix_kept, entries.target, self.recent)
            older = generated & (index < (plan.prefix + plan.pool).view(1, -1, 1, 1))
            older = torch.where(older.any(-1, keepdim=True), older, generated)
            prompt, generated, older = (mask.unsqueeze(-2) for mask in (prompt, generated, older))
            scores = standardise(scores, prompt) + standardise(scores, generated, older)
        shared = candidates.all(0, keepdim=True).all(2, keepdim=True)
        return scores.amax((0, 2, 3)).unsqueeze(0).unsqueeze(2).masked_fill(~shared, 0)
