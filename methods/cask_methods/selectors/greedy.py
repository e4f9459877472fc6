"""What the greedy selectors share: rows, unit vectors, the unit of their penalties, picks as masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cask_eval.engine.contract import Entries
from cask_methods.selectors.top_k import highest
from cask_methods.standardise import moments

SPACES = ("values", "values_centred", "keys")
TAUS = ("std", "1", "range")

_BYTES = 1 << 31
_GRAM_ENTRIES_PER_PICK = 16


@dataclass(frozen=True)
class Rows:
    """A selection as N independent rows of n entries, layers, sequences and heads flattened.

    scores: [N, n]. candidates: [N, n] bool. quota: [N]. tau: [N, 1], the unit of the scores. weight: [N, 1], the
    selector's weight times τ. unit: [N, n, E], unit vectors (zero where an entry plays no part). steps: the largest
    quota. seeds: [N, n] bool, the protected entries, or None where they do not matter.
    """

    scores: Tensor
    candidates: Tensor
    quota: Tensor
    tau: Tensor
    weight: Tensor
    unit: Tensor
    steps: int
    seeds: Tensor | None = None

    def part(self, at: slice) -> Rows:
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        return Rows(**{name: value[at] if isinstance(value, Tensor) else value for name, value in cut.items()})

    def blocks(self, row_bytes: int) -> Iterator[tuple[slice, Rows]]:
        """As many rows at a time as fit 2 GiB when each needs `row_bytes`."""
        size = max(1, _BYTES // max(1, row_bytes))
        for start in range(0, len(self.scores), size):
            at = slice(start, start + size)
            yield at, self.part(at)

    def mask(self, order: Tensor) -> Tensor:
        """[N, n] bool: the first `quota` of each row's picks `order` [N, steps]."""
        n = self.scores.shape[-1]
        live = torch.arange(order.shape[1], device=order.device) < self.quota[:, None]
        # Picks beyond a row's quota go to a spare column.
        mask = torch.zeros(len(order), n + 1, dtype=torch.bool, device=order.device)
        return mask.scatter_(1, torch.where(live, order, n), True)[:, :n]

    def live(self) -> Tensor:
        """[N, steps] bool: which picks count."""
        return torch.arange(self.steps, device=self.quota.device) < self.quota[:, None]


def rows_of(
    scores: Tensor,
    candidates: Tensor,
    quota: Tensor,
    entries: Entries,
    *,
    weight: float,
    tau: str,
    space: str,
    seeded: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Rows:
    """The arguments of `Selector.select` as `Rows`. dtype: of the unit vectors, at least. Raises FloatingPointError
    when scores, keys or values that count are not finite."""
    scale = spread(scores, candidates, tau)
    if not bool(torch.isfinite(scale).all()):
        raise FloatingPointError("greedy selection met scores that are not finite")
    seeds = like(entries.resident, candidates) & ~candidates if seeded else None
    vectors = entries.keys if space == "keys" else entries.values
    unit = unit_vectors(vectors, candidates, seeds=seeds, centred=space == "values_centred", dtype=dtype)
    n, quota = scores.shape[-1], quota.expand(scores.shape[:-1]).reshape(-1)
    return Rows(
        scores.reshape(-1, n),
        candidates.reshape(-1, n),
        quota,
        scale.reshape(-1, 1),
        weight * scale.reshape(-1, 1),
        unit.reshape(-1, n, unit.shape[-1]),
        int(quota.max()) if quota.numel() else 0,
        None if seeds is None else seeds.reshape(-1, n),
    )


def spread(scores: Tensor, candidates: Tensor, tau: str) -> Tensor:
    """τ per row, [..., 1] in the dtype of `scores`: population deviation (``std``) or ``range`` over the candidates,
    or 1."""
    if tau == "1":
        return scores.new_ones(*scores.shape[:-1], 1)
    if tau == "range":
        top = scores.masked_fill(~candidates, -torch.inf).amax(-1, keepdim=True)
        low = scores.masked_fill(~candidates, torch.inf).amin(-1, keepdim=True)
        return (top - low).masked_fill(~candidates.any(-1, keepdim=True), 0)
    return moments(scores, candidates)[1].to(scores.dtype)


def unit_vectors(
    vectors: Tensor,
    candidates: Tensor,
    *,
    seeds: Tensor | None = None,
    centred: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[L or 1, R, H or 1, n, E] unit vectors of `vectors` [L, R, H, n, D], in `dtype` or theirs, whichever is wider.

    Zero where the vector is zero, or stands neither among the `candidates` (whose shape says which axes are shared)
    nor the `seeds`. Shared axes are concatenated into E, so that a cosine is the mean cosine. centred: less the
    candidates' mean. Raises FloatingPointError when a vector that counts holds NaN or infinity.
    """
    mask = candidates.unsqueeze(-1)
    counted = mask if seeds is None else mask | seeds.unsqueeze(-1)
    x = vectors.to(torch.promote_types(vectors.dtype, dtype)).masked_fill(~counted, 0)
    if centred:
        total = x.masked_fill(~mask, 0).sum(-2, keepdim=True, dtype=torch.float64)
        mean = total / mask.sum(-2, keepdim=True).clamp_min(1)
        x = (x - mean.to(x.dtype)).masked_fill(~counted, 0)
    # In fp64 no finite vector's square overflows or vanishes.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    if not bool(torch.isfinite(norm).all()):
        raise FloatingPointError("greedy selection met keys or values that are not finite")
    norm = norm.to(x.dtype)
    x = x / torch.where(norm > 0, norm, 1)
    for axis in (0, 2):
        shared = x.shape[axis]
        if candidates.shape[axis] == 1 and shared > 1:
            x = x.movedim(axis, -2).flatten(-2).unsqueeze(axis) / shared**0.5
    return x


class Cosines:
    """Cosines of each row's entries to one of them. gram: from a Gram matrix, computed at once."""

    def __init__(self, unit: Tensor, gram: bool):
        rows, n, _ = unit.shape
        self.unit, self.flat = unit, unit.reshape(rows * n, -1)
        self.base = torch.arange(rows, device=unit.device) * n
        self.gram = (unit @ unit.transpose(1, 2)).view(rows * n, n) if gram else None

    def to(self, pick: Tensor) -> Tensor:
        """[N, n] for `pick` [N]."""
        pick = pick + self.base
        if self.gram is not None:
            return self.gram.index_select(0, pick)
        return (self.unit @ self.flat.index_select(0, pick).unsqueeze(-1)).squeeze(-1)


def gram_pays(n: int, steps: int, row_bytes: int) -> bool:
    """Whether a Gram matrix is the faster way: when a row has at most 16 entries per pick, about where one CPU thread
    breaks even, and its matrix fits."""
    return n <= _GRAM_ENTRIES_PER_PICK * steps and row_bytes <= _BYTES


def overlap(keep: Tensor, scores: Tensor, candidates: Tensor, quota: Tensor) -> Tensor:
    """[R] fp32: the share of what is kept that the plain top-k keeps too; 1 where nothing is. 1 throughout says that
    the selector did nothing."""
    same = (keep & highest(scores, candidates, quota)).sum((0, 2, 3))
    total = keep.sum((0, 2, 3))
    return torch.where(total > 0, same / total.clamp_min(1), 1.0)


def mean_per_row(values: Tensor, live: Tensor, shape: torch.Size) -> Tensor:
    """[R] fp32: mean over layers, heads and picks of `values` [N, steps] where `live`; 0 where there are none.
    shape: [L or 1, R, H or 1, n] of the scores that N flattens."""
    total, count = (
        x.sum(-1, dtype=torch.float64).view(shape[:3]).sum((0, 2)) for x in (values.masked_fill(~live, 0), live)
    )
    return (total / count.clamp_min(1)).float()


def like(mask: Tensor, candidates: Tensor) -> Tensor:
    """The mask with the axes that `candidates` shares reduced to one."""
    for axis in (0, 2):
        if candidates.shape[axis] == 1:
            mask = mask.all(axis, keepdim=True)
    return mask
