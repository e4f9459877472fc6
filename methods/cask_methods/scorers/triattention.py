"""TriAttention's trigonometric score (https://arxiv.org/abs/2604.04921), collapsed to one matrix product a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries, Host
from cask_eval.errors import MethodError
from cask_methods.calibration import Statistics, load

OFFSETS = tuple(2**j for j in range(17))
"""The distances δ ahead of the newest token over which an entry's worth is averaged."""

_CHUNK_ELEMENTS = 1 << 27


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
        head g keeps the same positions in every layer.
    normalise: z-score per query head over the candidates (population deviation, at least 1e-6).
    aggregation: ``mean`` or ``max`` over the offsets. group: ``max`` or ``mean`` over a KV head's query heads.
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
        """Scores [L, R, H, n], or [1, R, H, n] in mode ``per_head``; 0 where `candidates` is False. What stands in
        empty or protected entries has no influence. Raises MethodError before `bind`."""
        if self.statistics is None:
            raise MethodError("TriAttention scores need calibration statistics; bind the method to a model first")
        statistics = self.statistics.to(entries.keys.device)
        layers, rows, heads, n, _ = entries.keys.shape
        turns = self._turns(entries)
        per_layer = max(1, rows * entries.geometry.query_heads * n + entries.keys[0].numel())
        step = max(1, _CHUNK_ELEMENTS // per_layer)
        parts = [
            self._layers(statistics, entries, candidates, turns, slice(i, min(i + step, layers)))
            for i in range(0, layers, step)
        ]
        scores = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.mode == "per_head":
            shared = candidates.all(0, keepdim=True)
            scores = scores.mean(0, keepdim=True).masked_fill(~shared, 0)
        return scores

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
        self, statistics: Statistics, entries: Entries, candidates: Tensor, turns: Tensor, layers: slice
    ) -> Tensor:
        dtype, scaling = statistics.m.dtype, entries.geometry.scaling
        keys = entries.keys[layers].to(dtype)
        count, rows, heads, n, dim = keys.shape
        grouped = (count, rows, heads, entries.geometry.groups)

        centre = torch.complex(statistics.c_re[layers].double(), statistics.c_im[layers].double())
        spread = (statistics.m[layers].double() - centre.abs()) * scaling
        columns = keys.transpose(-1, -2)
        sharp = None
        for turn in turns:
            # s² · (cached / s): one factor s is left.
            weight = torch.view_as_real(centre[:, None] * turn[:, None] * scaling)
            weight = weight.transpose(-1, -2).reshape(*grouped, dim).to(dtype)
            at_offset = weight @ columns
            sharp = at_offset if sharp is None else torch.maximum(sharp, at_offset)
        size = (keys[..., : dim // 2].square() + keys[..., dim // 2 :].square()).sqrt()
        spread = spread.to(dtype).view(count, 1, heads, -1, dim // 2)
        scores = sharp + spread @ size.transpose(-1, -2)  # [count, R, H, G, n]

        competing = candidates[layers].unsqueeze(-2)
        scores = scores.masked_fill(~competing, 0)
        if self.normalise:
            scores = _standardise(scores, competing)
        scores = scores.amax(-2) if self.group == "max" else scores.mean(-2)
        return scores.masked_fill(~candidates[layers], 0)


def _standardise(scores: Tensor, mask: Tensor) -> Tensor:
    """z-scores along the last axis over `mask`. Moments are summed in fp64, so that padding does not move them."""
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    deviation = (scores - scores.sum(-1, keepdim=True, dtype=torch.float64) / count).masked_fill(~mask, 0)
    sigma = (deviation.square().sum(-1, keepdim=True) / count).sqrt().clamp_min(1e-6)
    return (deviation / sigma).to(scores.dtype)
