"""Cases and slow fp64 arithmetic shared by the tests of greedy selectors."""

from __future__ import annotations

import dataclasses
import math

import torch
from cask_methods.selectors.greedy import rows_of
from method_cases import entries, geometry

CLOSE = 1e-5
"""Gains that differ by less may be picked in either order: rounding."""


def cosine(a, b):
    na, nb = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb) if na and nb else 0.0


def tau_of(scores, pool, tau):
    s = [float(scores[i]) for i in pool]
    mean = sum(s) / len(s)
    return {
        "std": math.sqrt(sum((x - mean) ** 2 for x in s) / len(s)),
        "1": 1.0,
        "range": max(s) - min(s),
    }[tau]


def row(values, scores, candidates=None):
    """One row as tensors of the selector's shapes: values [n, D], scores [n]."""
    values = torch.as_tensor(values, dtype=torch.float32)[None, None, None]
    scores = torch.as_tensor(scores, dtype=torch.float32)[None, None, None]
    mask = torch.ones_like(scores, dtype=torch.bool) if candidates is None else candidates[None, None, None]
    geo = geometry(layers=1, kv_heads=1, head_dim=values.shape[-1] + values.shape[-1] % 2)
    e = entries(geo, lengths=(scores.shape[-1],), prompts=(0,))
    return dataclasses.replace(e, values=values), scores, mask


def rows(values, scores, quota, weight, candidates=None, tau="std", dtype=torch.float32):
    """The same as `Rows`, ready for a selector's `greedy`."""
    e, s, mask = row(values, scores, candidates)
    quota = torch.tensor([[[quota]]])
    return rows_of(s, mask, quota, e, weight=weight, tau=tau, space="values", dtype=dtype)


def picks(selector, values, scores, quota):
    e, s, mask = row(values, scores)
    got = selector.select(s, mask, torch.tensor([[[quota]]]), e).keep
    return set(got[0, 0, 0].nonzero().flatten().tolist())


def clustered(e, seed=5, hubs=5, noise=0.3):
    """The entries with values in few clusters, so that resemblance decides much; padding stays NaN."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(hubs, e.values.shape[-1], generator=g)
    values = centres[torch.randint(hubs, e.values.shape[:-1], generator=g)]
    values = values + torch.randn(e.values.shape, generator=g) * noise
    return dataclasses.replace(e, values=values.masked_fill(~e.resident.unsqueeze(-1), torch.nan))


def case(shared=(), seed=5, lengths=(24, 17, 9), prompts=(3, 2, 1), dtype=torch.float32):
    """(entries, scores, candidates, quota) of three unequal sequences, of 3 layers and 2 heads, whose prompts are
    protected; the axes in `shared` (0: layers, 2: heads) are decided at once."""
    geo = geometry(head_dim=8)
    e = clustered(entries(geo, lengths=lengths, prompts=prompts), seed)
    e = dataclasses.replace(e, values=e.values.to(dtype), keys=e.keys.to(dtype))
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    for axis in shared:
        candidates = candidates.narrow(axis, 0, 1)
    scores = torch.randn(candidates.shape, generator=torch.Generator().manual_seed(seed))
    quota = torch.tensor([n // 2 for n in lengths])[None, :, None].expand(candidates.shape[:-1])
    return e, scores, candidates, quota


def each_row(e, scores, candidates, quota):
    """For every row in the order of `Rows`: its index, scores, pool, quota, and the values [layers that it decides for]
    as lists of vectors."""
    layers, count, heads, _ = candidates.shape
    for layer in range(layers):
        for r in range(count):
            for h in range(heads):
                pool = candidates[layer, r, h].nonzero().flatten().tolist()
                of = range(e.values.shape[0]) if layers == 1 else [layer]
                over = range(e.values.shape[2]) if heads == 1 else [h]
                vectors = [e.values[a, r, b].double().nan_to_num().tolist() for a in of for b in over]
                yield (layer, r, h), scores[layer, r, h].tolist(), pool, int(quota[layer, r, h]), vectors


def likeness(vectors, i, j):
    return sum(cosine(v[i], v[j]) for v in vectors) / len(vectors)
