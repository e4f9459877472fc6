"""TriAttention's trigonometric score (https://arxiv.org/abs/2604.04921), collapsed to one matrix product a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine import kernels
from cask_eval.engine.contract import Entries, Host
from cask_eval.errors import MethodError
from cask_methods.calibration import Statistics, load
from cask_methods.standardise import standardise

OFFSETS = tuple(2**j for j in range(17))
"""The distances δ ahead of the newest token over which an entry's worth is averaged."""

_CHUNK_ELEMENTS = 1 << 27
_UNBOUND = "TriAttention scores need calibration statistics; bind the method to a model first"


@dataclass(frozen=True)
class TriAttentionScorer:
    """Expected attention of calibrated queries to each cached key at distances T + δ − p, δ in `OFFSETS`.

    For query head h with centre c and mean magnitude m, and a key k with true (un-rotated) components k_f,

        S(k, Δ) = s² Σ_f |c_f||k_f| cos(ω_f Δ + arg c_f k̄_f) + s² Σ_f (m_f − |c_f|) |k_f|,   Δ = T − p + δ.

    The cached key already carries e^{iω p}, so c_f k̄_f e^{iω(T − p + δ)} = c_f e^{iω(T + δ)} · conj(cached_f): neither
    un-rotation nor positions are needed, and the mean over δ collapses into one complex weight per frequency,
    W_f(T) = c_f e^{iω_f T} · mean_δ e^{iω_f δ}. W is built in fp64 and then cast to the dtype of the statistics, in
    which the rest is computed.

    mode: ``per_layer_head`` decides per layer and KV head; ``per_head`` averages the scores over layers, so that KV
        head g keeps the same positions in every layer; ``global`` takes their maximum over layers and KV heads, so
        that all keep the same positions. The published union ("every query head proposes its K best, the union is
        ranked by the maximum over heads") is that same stable top-k: whatever precedes an entry in the head where
        the entry attains its maximum also precedes it in the ranking by maxima, so that an entry among the K best
        by maximum has fewer than K entries before it in that head, which therefore proposes it.
    normalise: z-score per query head over the candidates (population deviation, at least 1e-6).
    aggregation: ``mean`` or ``max`` over the offsets. group: ``max`` or ``mean`` over a KV head's query heads.
    disable_trig: drops the sum of cosines. disable_mlr: puts m_f for m_f − |c_f|. The published ablation switches.
    statistics: None until `bind`.

    Deviations from the published code: no U(0, 1)·1e-6 noise is added, ties go to the lower position; every sequence
    is scored by its own keys (the published code scores row 0 of a batch for all).
    """

    name: ClassVar[str] = "triattention"
    calibrated: ClassVar[bool] = True

    mode: str = "per_layer_head"
    normalise: bool = True
    aggregation: str = "mean"
    group: str = "max"
    disable_trig: bool = False
    disable_mlr: bool = False
    statistics: Statistics | None = None

    def bind(self, host: Host) -> TriAttentionScorer:
        """The scorer with statistics from a file. Raises MethodError when there are none or they do not fit."""
        if host.calibration is None:
            raise MethodError(
                "this method needs calibration statistics, and the model has none; run "
                "`cask-eval calibrate` and give models[].calibration"
            )
        statistics = load(host.calibration)
        statistics.check(host.geometry)
        return replace(self, statistics=statistics)

    def score(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores [L, R, H, n], [1, R, H, n] in mode ``per_head``, or [1, R, 1, n] in mode ``global``; 0 where
        `candidates` is False. What stands in empty or protected entries has no influence. Raises MethodError before
        `bind`."""
        scores = self._by_kernel(entries, candidates) if kernels.use("trig_score", entries.keys) else None
        if scores is None:
            scores = self.heads(entries, candidates)
            scores = scores.amax(-2) if self.group == "max" else scores.mean(-2)
        if self.mode == "per_head":
            return scores.mean(0, keepdim=True).masked_fill(~candidates.all(0, keepdim=True), 0)
        if self.mode == "global":
            shared = candidates.all(0, keepdim=True).all(2, keepdim=True)
            return scores.amax((0, 2), keepdim=True).masked_fill(~shared, 0)
        return scores

    def heads(self, entries: Entries, candidates: Tensor) -> Tensor:
        """Scores of every query head, [L, R, H, G, n], z-scores when `normalise`, before any reduction; 0 where
        `candidates` [L, R, H, n] is False. Raises MethodError before `bind`."""
        if self.statistics is None:
            raise MethodError(_UNBOUND)
        statistics = self.statistics.to(entries.keys.device)
        layers, rows, _, n, _ = entries.keys.shape
        turns = () if self.disable_trig else self._turns(entries)
        per_layer = max(1, rows * entries.geometry.query_heads * n + entries.keys[0].numel())
        step = max(1, _CHUNK_ELEMENTS // per_layer)
        parts = [
            self._layers(statistics, entries, candidates, turns, slice(i, min(i + step, layers)))
            for i in range(0, layers, step)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _by_kernel(self, entries: Entries, candidates: Tensor) -> Tensor | None:
        """Scores [L, R, H, n] of every KV head; None where the kernel cannot compute them."""
        from cask_methods.kernels import trig_score  # with Triton

        if self.statistics is None:
            raise MethodError(_UNBOUND)
        statistics = self.statistics.to(entries.keys.device)
        if not trig_score.takes(entries.keys, statistics.m):
            return None
        centre = torch.complex(statistics.c_re.double(), statistics.c_im.double())
        spread = (statistics.m.double() - (0 if self.disable_mlr else centre.abs())) * entries.geometry.scaling
        return trig_score.score(
            entries.keys,
            candidates,
            statistics.c_re,
            statistics.c_im,
            spread.float(),
            () if self.disable_trig else self._turns(entries) * entries.geometry.scaling,
            normalise=self.normalise,
            largest=self.group == "max",
        )

    def _turns(self, entries: Entries) -> Tensor:
        """e^{iω(T + δ)} as complex128 [A, R, F]: A = 1 with the mean over the offsets taken, else one per offset."""
        omega = entries.geometry.inv_freq.to(entries.length.device, torch.float64)
        offsets = torch.tensor(OFFSETS, dtype=torch.float64, device=omega.device)
        ahead = offsets[:, None] * omega
        ahead = torch.complex(ahead.cos(), ahead.sin())[:, None]
        if self.aggregation == "mean":
            ahead = ahead.mean(0, keepdim=True)
        now = entries.length.double()[:, None] * omega
        return torch.complex(now.cos(), now.sin()) * ahead

    def _layers(
        self, statistics: Statistics, entries: Entries, candidates: Tensor, turns: Tensor | tuple, layers: slice
    ) -> Tensor:
        dtype, scaling = statistics.m.dtype, entries.geometry.scaling
        keys = entries.keys[layers].to(dtype)
        count, rows, heads, n, dim = keys.shape
        grouped = (count, rows, heads, entries.geometry.groups)

        centre = torch.complex(statistics.c_re[layers].double(), statistics.c_im[layers].double())
        spread = statistics.m[layers].double() - (0 if self.disable_mlr else centre.abs())
        columns = keys.transpose(-1, -2)
        sharp = None
        for turn in turns:
            # s² · (cached / s): one factor s is left.
            weight = torch.view_as_real(centre[:, None] * turn[:, None] * scaling)
            weight = weight.transpose(-1, -2).reshape(*grouped, dim).to(dtype)
            at_offset = weight @ columns
            sharp = at_offset if sharp is None else torch.maximum(sharp, at_offset)
        size = (keys[..., : dim // 2].square() + keys[..., dim // 2 :].square()).sqrt()
        spread = (spread * scaling).to(dtype).view(count, 1, heads, -1, dim // 2)
        scores = spread @ size.transpose(-1, -2)  # [count, R, H, G, n]
        if sharp is not None:
            scores = sharp + scores

        competing = candidates[layers].unsqueeze(-2)
        scores = scores.masked_fill(~competing, 0)
        return standardise(scores, competing) if self.normalise else scores
