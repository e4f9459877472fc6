"""Small random cases for method tests: a geometry, statistics, and resident entries of unequal lengths."""

from __future__ import annotations

import torch
from cask_methods.calibration import Statistics

from cask_eval.engine.contract import Entries, Geometry

torch.set_num_threads(1)


def geometry(layers=3, kv_heads=2, groups=2, head_dim=16, scaling=1.0, theta=10000.0) -> Geometry:
    inv = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return Geometry(layers, kv_heads * groups, kv_heads, head_dim, inv, scaling, torch.float32, "tiny")


def statistics(geo: Geometry, seed=0, dtype=torch.float32) -> Statistics:
    g = torch.Generator().manual_seed(seed)
    shape = (geo.layers, geo.query_heads, geo.head_dim // 2)
    re, im = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    m = torch.hypot(re, im) * (1 + torch.rand(shape, generator=g, dtype=torch.float64))
    return Statistics(re.to(dtype), im.to(dtype), m.to(dtype), geo.inv_freq, "tiny")


def entries(
    geo: Geometry,
    lengths=(20, 14, 7),
    prompts=(5, 3, 2),
    seed=0,
    dtype=torch.float32,
    scattered=True,
    events=None,
    seeds=None,
    junk=True,
) -> Entries:
    """Entries with `lengths` residents a sequence, each at ascending positions with gaps where tokens were evicted;
    the prompt is resident in full. Padding holds NaN when `junk`."""
    g = torch.Generator().manual_seed(seed)
    rows, n = len(lengths), max(lengths)
    shape = (geo.layers, rows, geo.kv_heads, n)
    keys, values = (torch.randn(*shape, geo.head_dim, generator=g, dtype=dtype) for _ in range(2))
    positions = torch.full(shape, -1, dtype=torch.int64)
    length = torch.zeros(rows, dtype=torch.int64)
    for r, (count, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        prompt = min(prompt, count)
        span = 3 * count if scattered else count
        length[r] = span
        rest = prompt + torch.randperm(span - prompt, generator=g)[: count - prompt].sort().values
        positions[:, r, :, :count] = torch.cat([torch.arange(prompt), rest])
        if junk:
            keys[:, r, :, count:] = torch.nan
            values[:, r, :, count:] = torch.nan
    seeds = torch.arange(rows) * 7919 + 11 if seeds is None else torch.tensor(seeds)
    events = torch.arange(rows) if events is None else torch.tensor(events)
    return Entries(keys, values, positions, torch.tensor(prompts), length, seeds, events, geo)


def single(e: Entries, row: int) -> Entries:
    """Sequence `row` on its own, without padding."""
    n = int((e.positions[0, row, 0] >= 0).sum())
    pick = slice(row, row + 1)
    return Entries(
        e.keys[:, pick, :, :n],
        e.values[:, pick, :, :n],
        e.positions[:, pick, :, :n],
        e.prompt_tokens[pick],
        e.length[pick],
        e.seeds[pick],
        e.events[pick],
        e.geometry,
    )
