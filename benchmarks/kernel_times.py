"""Each Triton kernel beside the eager operators that it replaces, on a GPU.

    python benchmarks/kernel_times.py [--only NAME ...] [--rows 1 16 64 512] [--json FILE]

Shapes of DeepSeek-R1-Distill-Qwen-7B (28 layers, 4 KV heads, 7 query heads each, heads of 128) and of an 8B model (32
layers, 8 KV heads, 4 query heads each). n: entries a head holds, 192 (b = 64, Δ = 128), 256 and 640. Attention is one
layer of one decode step, as a CUDA graph of 28 or 32 of them, which is how the engine runs it; the others are one
compression event of that many rows in all layers. bfloat16 keys and values, random. An event keeps n − 128 entries a
head.

Each line: microseconds eager, microseconds with the kernel (the median of --repeat runs, compilation left out), their
ratio (above 1 the kernel is faster), and how far the results differ: the largest absolute difference of attention and
scores, the share of entries otherwise of what selects or moves. A shape that does not fit into memory is left out. What
is compared is the engine's own code, switched by CASK_EVAL_KERNELS. Without a GPU: exit status 2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cask_methods.calibration import Statistics
from cask_methods.scorers.triattention import TriAttentionScorer
from cask_methods.selectors.diverse import greedy
from cask_methods.selectors.greedy import rows_of
from cask_methods.selectors.top_k import highest
from torch import Tensor

from cask_eval.engine import kernels
from cask_eval.engine.attention import slot_attention
from cask_eval.engine.contract import Entries, Geometry
from cask_eval.engine.slots import SlotCache

MODELS = {"7B": (28, 4, 7), "8B": (32, 8, 4)}
DIM, EVICTED, DEVICE = 128, 128, "cuda"
SECONDS = 100  # begins no more shapes after that

Case = Callable[[], Any]


def geometry(name: str) -> Geometry:
    layers, heads, groups = MODELS[name]
    inv = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    return Geometry(layers, heads * groups, heads, DIM, inv, 1.0, torch.bfloat16, name)


def microseconds(run: Case, repeat: int) -> float:
    """The median of `repeat` runs after one that does not count; of fewer once they took half a second."""
    times: list[float] = []
    for turn in range(repeat + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if turn:
            times.append(begin.elapsed_time(end) * 1e3)
        if sum(times) > 5e5:
            break
    return statistics.median(times)


def resident(geo: Geometry, rows: int, n: int) -> Entries:
    shape = (geo.layers, rows, geo.kv_heads, n)
    keys, values = (torch.randn(*shape, DIM, dtype=geo.dtype, device=DEVICE) for _ in range(2))
    positions = torch.arange(n, device=DEVICE).expand(shape)
    length, zero = torch.full((rows,), n, device=DEVICE), torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    return Entries(keys, values, positions, zero, length, zero, zero, geo)


def attention(geo: Geometry, rows: int, n: int) -> Case:
    cache = SlotCache(geo, rows, n, DEVICE)
    for buffer in cache.store.buffers:
        buffer.normal_()
    position = torch.full((rows,), n - 1, device=DEVICE)
    cache.positions[..., : n - 1] = torch.arange(n - 1, device=DEVICE)
    cache.fill.fill_(n - 1)
    cache.begin_step(rows, n, position)
    query = torch.randn(rows, geo.query_heads, 1, DIM, dtype=geo.dtype, device=DEVICE)
    layers = [SimpleNamespace(layer_idx=i) for i in range(geo.layers)]

    def step() -> Tensor:
        for layer in layers:
            key, value = (x[layer.layer_idx, :rows, :, :n] for x in cache.store.buffers)
            out, _ = slot_attention(layer, query, key, value, None, scaling=DIM**-0.5, slots=cache)
        return out

    # Captured with whatever kernels are in use when this is first called.
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def run() -> Tensor:
        which = os.environ[kernels.VARIABLE]
        if which not in graphs:
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = step()
            graphs[which] = graph, out
        graph, out = graphs[which]
        graph.replay()
        return out

    return run


def compact(geo: Geometry, rows: int, n: int) -> Case:
    e, kept = resident(geo, rows, n), n - EVICTED
    order = torch.rand(e.positions.shape, device=DEVICE).argsort(-1)
    keep = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :kept], True)
    slots = torch.arange(rows, device=DEVICE)
    cache = SlotCache(geo, rows, n, DEVICE)

    def run() -> Tensor:
        cache.place(slots, e, keep, kept, [kept] * rows)
        return cache.positions

    return run


def trig_score(geo: Geometry, rows: int, n: int) -> Case:
    re, im = torch.randn(2, geo.layers, geo.query_heads, DIM // 2, device=DEVICE)
    scorer = TriAttentionScorer(statistics=Statistics(re, im, torch.hypot(re, im) * 1.5, geo.inv_freq, geo.name))
    e = resident(geo, rows, n)
    candidates = e.positions >= 0
    return lambda: scorer.score(e, candidates)


def top_k(geo: Geometry, rows: int, n: int) -> Case:
    scores = torch.randn(geo.layers, rows, geo.kv_heads, n, device=DEVICE)
    candidates, quota = torch.ones_like(scores, dtype=torch.bool), torch.full(scores.shape[:3], n - EVICTED).to(DEVICE)
    return lambda: highest(scores, candidates, quota)


def diverse(geo: Geometry, rows: int, n: int) -> Case:
    e = resident(geo, rows, n)
    scores = torch.randn(e.positions.shape, device=DEVICE)
    quota = torch.full(scores.shape[:3], n - EVICTED).to(DEVICE)
    all_of_them = torch.ones_like(scores, dtype=torch.bool)
    made = rows_of(scores, all_of_them, quota, e, weight=0.5, tau="std", space="values")
    return lambda: made.mask(greedy(made)[0])


CASES = {"attention": attention, "compact": compact, "trig_score": trig_score, "top_k": top_k, "diverse": diverse}


def difference(eager: Tensor, ours: Tensor) -> float:
    if eager.is_floating_point():
        return float((eager.float() - ours.float()).abs().max())
    return float((eager != ours).float().mean())


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    began = time.monotonic()
    # The smaller shapes of everything first, so that a slow card has seen each kernel.
    for rows in args.rows:
        for name in args.only or CASES:
            for model in MODELS:
                for n in args.entries:
                    about = {"kernel": name, "model": model, "n": n, "rows": rows}
                    if time.monotonic() - began > SECONDS:
                        yield {**about, "left_out": "time"}
                        continue
                    torch.cuda.empty_cache()
                    try:
                        yield about | one(name, geometry(model), rows, n, args.repeat)
                    except torch.OutOfMemoryError:
                        yield {**about, "left_out": "memory"}


def one(name: str, geo: Geometry, rows: int, n: int, repeat: int) -> dict[str, float]:
    torch.manual_seed(0)
    run = CASES[name](geo, rows, n)
    times, results = [], []
    for which in ("", name):
        os.environ[kernels.VARIABLE] = which
        results.append(run().clone())
        # Graphs hold a whole step; what is told is a layer.
        times.append(microseconds(run, repeat) / (geo.layers if name == "attention" else 1))
    eager, ours = times
    return {"eager_us": eager, "kernel_us": ours, "ratio": eager / ours, "difference": difference(*results)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 512])
    parser.add_argument("--entries", type=int, nargs="+", default=[192, 256, 640])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "benchmarks/kernel_times.py: there is no CUDA device. Triton's interpreter runs kernels in NumPy, one "
            "program after the other: its times mean nothing, so none are taken.",
            file=sys.stderr,
        )
        return 2
    import triton

    about = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "repeat": args.repeat,
    }
    print(f"{about['device']}, torch {about['torch']}, Triton {about['triton']}")
    print(f"{'kernel':11} model {'n':>4} {'rows':>4} {'eager µs':>11} {'kernel µs':>11}   ratio  difference")
    rows = []
    with torch.inference_mode():
        for row in measure(args):
            rows.append(row)
            head = f"{row['kernel']:11} {row['model']:5} {row['n']:4} {row['rows']:4}"
            if "left_out" in row:
                print(f"{head} left out: no more {row['left_out']}", flush=True)
                continue
            ratio = f"{row['eager_us']:11.1f} {row['kernel_us']:11.1f} {row['ratio']:7.2f}"
            print(f"{head} {ratio}  {row['difference']:.2g}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"about": about, "rows": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
