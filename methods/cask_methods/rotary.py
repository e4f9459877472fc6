"""Rotary position embedding, forwards and backwards, for parts that need keys or queries without their phase.

Half pairing: component f of x is the complex number x[f] + i·x[f + F], F = D/2. Position p multiplies it by
s·e^{iω_f p}, with ω = `Geometry.inv_freq` and s = `Geometry.scaling` (https://arxiv.org/abs/2104.09864).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cask_eval.engine.contract import Geometry

_CHUNK_ELEMENTS = 1 << 26


def rotate(x: Tensor, positions: Tensor, geometry: Geometry) -> Tensor:
    """`x` [..., D] as it would be cached at logical `positions`, int64, which broadcast to x.shape[:-1].

    Angles are computed in fp64, products in fp32 (in fp64 when `x` is); the result has that dtype. What stands at
    position -1 means nothing but does no harm: entries do not mix, so NaN stays where it was.
    """
    return _turned(x, positions, geometry, 1, geometry.scaling)


def unrotate(x: Tensor, positions: Tensor, geometry: Geometry) -> Tensor:
    """The inverse of `rotate`: cached `x` [..., D] without its phase and without the factor s."""
    return _turned(x, positions, geometry, -1, 1 / geometry.scaling)


def turn(x: Tensor, by: Tensor) -> Tensor:
    """The components of `x` [..., D], floating, times the complex numbers `by` [..., F]; both broadcast."""
    half = x.shape[-1] // 2
    re, im = x[..., :half], x[..., half:]
    cos, sin = by.real.to(x.dtype), by.imag.to(x.dtype)
    return torch.cat([re * cos - im * sin, re * sin + im * cos], -1)


def phases(positions: Tensor, geometry: Geometry) -> Tensor:
    """e^{iωp} as complex128 [..., F] for `positions` [...]."""
    angle = positions.double().unsqueeze(-1) * geometry.inv_freq.to(positions.device, torch.float64)
    return torch.complex(angle.cos(), angle.sin())


def _turned(x: Tensor, positions: Tensor, geometry: Geometry, sign: int, factor: float) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.ndim == 1 or x.numel() <= _CHUNK_ELEMENTS:
        return turn(x, phases(positions * sign, geometry) * factor)
    # fp64 phases take more room than x does: one slice of the first axis at a time.
    positions = positions.reshape(*(1,) * (x.ndim - 1 - positions.ndim), *positions.shape)
    positions = positions.expand(len(x), *positions.shape[1:])
    step = max(1, len(x) * _CHUNK_ELEMENTS // x.numel())
    pairs = zip(x.split(step), positions.split(step), strict=True)
    return torch.cat([turn(a, phases(p * sign, geometry) * factor) for a, p in pairs])
