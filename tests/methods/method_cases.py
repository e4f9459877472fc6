"""Small random cases for method tests: a geometry, statistics, and resident entries of unequal lengths."""

from __future__ import annotations

from dataclasses import replace

import torch
from cask_methods.calibration import Statistics

from cask_eval.engine.contract import Entries, Geometry, Needs

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
    needs=Needs(),
    vocabulary=50,
) -> Entries:
    """Entries with `lengths` residents a sequence, each at ascending positions with gaps where tokens were evicted;
    the prompt and the newest token are resident. Padding holds NaN when `junk`. What `needs` asks for is there too:
    remembered queries at the newest positions, and traits at random values of at least their start."""
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
        if count > prompt:
            rest[-1] = span - 1
        positions[:, r, :, :count] = torch.cat([torch.arange(prompt), rest])
        if junk:
            keys[:, r, :, count:] = torch.nan
            values[:, r, :, count:] = torch.nan
    seeds = torch.arange(rows) * 7919 + 11 if seeds is None else torch.tensor(seeds)
    events = torch.arange(rows) if events is None else torch.tensor(events)
    resident = positions >= 0
    traits = {}
    for name, trait in needs.traits.items():
        drawn = (trait.start + torch.rand(shape, generator=g) * 3).to(trait.dtype)
        drawn = drawn.masked_fill(~resident, trait.start)
        traits[name] = drawn[:1, :, :1] if trait.shared else drawn
    queries = at = None
    if needs.queries:
        w = needs.queries
        queries = torch.randn(geo.layers, rows, geo.query_heads, w, geo.head_dim, generator=g, dtype=dtype)
        at = length[:, None] - w + torch.arange(w)
        at = torch.where(at < 0, -1, at)
    tokens = torch.full((rows, int(length.max())), -1)
    for r in range(rows):
        tokens[r, : length[r]] = torch.randint(0, vocabulary, (int(length[r]),), generator=g)
    prompt = torch.tensor(prompts)
    return Entries(
        keys, values, positions, prompt, length, seeds, events, geo, prompt, prompt, queries, at, traits, tokens
    )


def single(e: Entries, row: int) -> Entries:
    """Sequence `row` on its own, without padding."""
    n = int((e.positions[:, row] >= 0).sum(-1).max())
    one = e.rows(slice(row, row + 1))
    return replace(
        one,
        keys=one.keys[:, :, :, :n],
        values=one.values[:, :, :, :n],
        positions=one.positions[:, :, :, :n],
        traits={k: v[..., :n] for k, v in one.traits.items()},
        tokens=one.tokens[:, : int(e.length[row])],
    )
