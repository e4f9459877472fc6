"""Expected Attention: what a Gaussian of recent queries will attend to (https://arxiv.org/abs/2510.00636)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Needs
from cask_eval.errors import MethodError
from cask_methods.rotary import phases, turn

_CHUNK_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class ExpectedAttentionScorer:
    """s_i = (mean over the query heads of softmax(z)_i + ε) · ‖v_i‖, per layer and KV head, where

        z_i = μ'·k_i / √D + k_iᵀ Σ' k_i / (2D),    μ' = R̄ μ,    Σ' = R̄ Σ R̄ᵀ,

    is the log of E[exp(q·k_i / √D)] for a Gaussian query. μ and Σ (population) are those of the remembered queries
    before rotation; R̄ is the rotation averaged over the next `horizon` logical positions, the first of which is the
    next query's. The softmax runs over the candidates, so that what is protected takes no share; values enter by
    their length.

    A query remembered at position p is turned straight to the horizon, by mean over j of e^{iω(T + j − p)}: the two
    rotations and their scaling merge. Σ' is never built: k'Σ'k is the mean square of k's products with the turned
    queries, less their mean.

    window: how many of the newest queries count; sequences that have fewer use what they have.

    Deviations from the published code: it starts the horizon at the length of its own buffer while decoding, and
    drops the buffer's first four states as if they were the sequence's.
    """

    name: ClassVar[str] = "expected_attention"

    window: int = 256
    horizon: int = 512
    epsilon: float = 0.0

    @property
    def needs(self) -> Needs:
        return Needs(queries=self.window)

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n], at least 0; 0 where `candidates` is False. Raises MethodError when fewer queries are
        remembered than the window holds."""
        if entries.queries is None or entries.queries.shape[3] < self.window:
            raise MethodError(f"expected attention needs the newest {self.window} queries remembered (Needs.queries)")
        # Another part of the method may have asked for more.
        entries = replace(
            entries,
            queries=entries.queries[..., -self.window :, :],
            query_positions=entries.query_positions[:, -self.window :],
        )
        layers, rows, _, n, dim = entries.keys.shape
        step = max(1, _CHUNK_ELEMENTS // max(1, rows * entries.geometry.query_heads * self.window * (n + dim)))
        ahead = self._ahead(entries)
        parts = [
            self._layers(entries, candidates, ahead, slice(i, min(i + step, layers))) for i in range(0, layers, step)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _ahead(self, entries: Entries) -> Tensor:
        """mean over j of e^{iω(T + j − p)} for every remembered query, complex128 [R, 1, W, F]."""
        steps = torch.arange(self.horizon, device=entries.length.device)
        mean = phases(steps, entries.geometry).mean(0)
        gap = entries.length[:, None] - entries.query_positions
        return (phases(gap, entries.geometry) * mean).unsqueeze(1)

    def _layers(self, entries: Entries, candidates: Tensor, ahead: Tensor, layers: slice) -> Tensor:
        geo = entries.geometry
        dtype = torch.promote_types(entries.keys.dtype, torch.float32)
        candidates = candidates[layers]
        competing = candidates.unsqueeze(-1)
        keys, values = (x[layers].to(dtype).masked_fill(~competing, 0) for x in (entries.keys, entries.values))
        present = (entries.query_positions >= 0).view(1, -1, 1, entries.query_positions.shape[1], 1)
        count = present.sum(3).clamp_min(1)

        turned = turn(entries.queries[layers].to(dtype), ahead).masked_fill(~present, 0)  # [l, R, Hq, W, D]
        centre = turned.sum(3) / count  # [l, R, Hq, D]
        around = (turned - centre.unsqueeze(3)).masked_fill(~present, 0)

        columns = keys.transpose(-1, -2)
        grouped = (*keys.shape[:3], -1, geo.head_dim)
        mean = centre.view(grouped) @ columns  # [l, R, H, G, n]
        square = (around.view(grouped) @ columns).square()  # [l, R, H, G·W, n]
        square = square.unflatten(3, (geo.groups, -1)).sum(4) / count.unsqueeze(-1)
        z = mean / geo.head_dim**0.5 + square / (2 * geo.head_dim)
        z = z.masked_fill(~candidates.unsqueeze(3), -torch.inf)
        share = z.softmax(-1).mean(3)
        # A row without candidates is all NaN by now; its entries are masked like any other's.
        return ((share + self.epsilon) * torch.linalg.vector_norm(values, dim=-1)).masked_fill(~candidates, 0)
