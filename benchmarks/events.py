"""What a compression event costs, for every preset, as a share of the decode time it is spread over.

    python benchmarks/events.py [--batch 2] [--budgets 64 128 512] [--delta 128] [--only NAME ...] [--json FILE]

Shape of DeepSeek-R1-Distill-Qwen-7B: 28 layers, 28 query and 4 KV heads of 128, hidden 3584. An event compresses
`batch` sequences of b + Δ entries each: rows = layers × heads × batch. It is `Policy.compress` and `SlotCache.place`,
as the engine runs them; for methods that watch every attention read, the Δ observations between two events are added.
The decode time is Δ steps of one decoder layer of that shape × layers, plus the output head once a step, measured in
the same run on the same device with the same batch; embedding and sampling are left out, which makes shares larger.
Every figure is the least of --repeat runs. Random weights, keys and statistics: no download.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cask_methods.calibration import Statistics
from transformers import Qwen2Config, Qwen2ForCausalLM

from cask_eval.engine import registry
from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Geometry, Host
from cask_eval.engine.method import Method, Policy
from cask_eval.engine.model import geometry
from cask_eval.engine.slots import SlotCache
from cask_eval.errors import MethodError

LAYERS, PROMPT = 28, 16
TARGET = 0.05


def least(run: Callable[[], None], repeat: int, device: torch.device) -> float:
    """Seconds of the fastest of `repeat` runs after one that does not count."""
    best = float("inf")
    for turn in range(repeat + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - began)
    return best


def decoder(dtype: torch.dtype, device: torch.device) -> Qwen2ForCausalLM:
    """One layer and the output head of the 7B shape, random weights."""
    config = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=1,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
    model.set_attn_implementation(NAME)
    return model


def step_time(model: Qwen2ForCausalLM, batch: int, entries: int, repeat: int) -> float:
    """Seconds of one decode step of all layers and the head over `entries` resident entries."""
    shape, device = geometry(model), model.device
    cache = SlotCache(shape, batch, entries + 1, device)
    cache.fill.fill_(entries)
    cache.positions[..., :entries] = torch.arange(entries, device=device)
    position = torch.full((batch,), entries, device=device)
    hidden = torch.randn(batch, 1, 3584, dtype=model.dtype, device=device)
    layer, rotary = model.model.layers[0], model.model.rotary_emb
    turn = rotary(hidden, position[:, None])

    def one_layer() -> None:
        cache.begin_step(batch, entries + 1, position)
        layer(hidden, position_embeddings=turn, past_key_values=cache.layers_view, use_cache=True, slots=cache)

    def head() -> None:
        model.lm_head(hidden)

    return LAYERS * least(one_layer, repeat, device) + least(head, repeat, device)


def shape_of(model: Qwen2ForCausalLM) -> Geometry:
    one = geometry(model)
    return Geometry(LAYERS, 28, 4, 128, one.inv_freq, one.scaling, one.dtype, "7B shape")


def event_time(policy: Policy, batch: int, budget: int, delta: int, repeat: int, device: torch.device) -> float:
    """Seconds of one event of `batch` sequences, and of the observations since the last one."""
    shape, needs = policy.host.geometry, policy.needs
    part = policy.schedule(budget).split()[0]
    n = part.target(PROMPT) + part.delta
    done = part.event(n, PROMPT, PROMPT)
    observers = [p for p in policy.parts if hasattr(p, "observe")]
    cache = SlotCache(shape, batch, n, device, needs, policy.footprint.packing, observers)
    g = torch.Generator(device).manual_seed(1)
    slots, ones = torch.arange(batch, device=device), torch.ones(batch, dtype=torch.int64, device=device)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, device=device, dtype=shape.dtype)

    cache.positions[..., :n] = torch.arange(n, device=device)
    cache.fill.fill_(n)
    if needs.queries:
        cache.queries.copy_(random(*cache.queries.shape))
        cache.query_positions[:] = torch.arange(n - needs.queries, n, device=device)
    entries = cache.entries(
        slots,
        n,
        prompt_tokens=ones * PROMPT,
        length=ones * n,
        seeds=slots,
        events=ones,
        prefix=ones * PROMPT,
        prefix_kept=ones * done.prefix,
        tokens=torch.randint(0, 1000, (batch, n), generator=g, device=device),
    )
    full = (LAYERS, batch, shape.kv_heads, n, shape.head_dim)
    object.__setattr__(entries, "keys", random(*full))
    object.__setattr__(entries, "values", random(*full))
    target = ones * done.resident

    def event() -> None:
        after = policy.compress(entries, target)
        kept = int(after.keep.sum(-1).max())
        if kept > cache.capacity:
            cache.reserve(kept)
        cache.place(slots, after.entries, after.keep, kept, [done.resident] * batch)

    total = least(event, repeat, device)
    if observers:
        query, key = random(batch, 28, 1, 128), random(batch, 4, n, 128)
        cache.positions[..., :n] = torch.arange(n, device=device)
        cache.fill.fill_(n - 1)
        cache.begin_step(batch, n, ones * (n - 1))
        total += part.delta * LAYERS * least(lambda: cache.see(0, query, key, 128**-0.5), repeat, device)
    return total


def presets(delta: int) -> dict[str, Method]:
    """Every installed preset that compresses, at its defaults; α also at λ = 0."""
    out: dict[str, Method] = {}
    for name in registry.available():
        known = registry.load(name).parameters()
        given = {"delta": delta, "earliest": delta // 2}
        out[name] = registry.load(name).make(name, {k: v for k, v in given.items() if k in known})
    out["alpha λ=0"] = registry.load("alpha").make("alpha", {"delta": delta, "lambda": "0"})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--delta", type=int, default=128)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    with torch.inference_mode():
        rows = measure(args, device, dtype)
    late = [r for r in rows if r["budget"] == 128 and r["share"] is not None and r["share"] > TARGET]
    print(f"\nabove {TARGET:.0%} at b = 128: " + (", ".join(f"{r['preset']} {r['share']:.1%}" for r in late) or "none"))
    times = {(r["preset"], r["budget"]): r["event_ms"] for r in rows if r["share"] is not None}
    for budget in args.budgets:
        for name in ("alpha", "alpha λ=0"):
            if (name, budget) in times and ("triattention", budget) in times:
                ratio = times[name, budget] / times["triattention", budget]
                print(f"b = {budget}: {name} {ratio:.2f} × a plain top-k event of triattention")
    if args.json:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        about = {"torch": torch.__version__, "device_name": name, **vars(args), "dtype": str(dtype)}
        Path(args.json).write_text(json.dumps({"about": about, "rows": rows}, indent=1), encoding="utf-8")


def measure(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict]:
    model = decoder(dtype, device)
    shape = shape_of(model)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        re, im = torch.randn(2, LAYERS, 28, 64, generator=torch.Generator().manual_seed(0))
        Statistics(re, im, torch.hypot(re, im) * 1.5, shape.inv_freq, shape.name).save(path)
        host = Host(shape, str(path), lambda text: [sum(text.encode()) % 1000])
        for budget in args.budgets:
            step = step_time(model, args.batch, budget + args.delta // 2, args.repeat)
            print(f"b = {budget}: {step * 1e3:.1f} ms a decode step, {step * args.delta:.2f} s between two events")
            for name, method in presets(args.delta).items():
                if args.only and name not in args.only:
                    continue
                row = {"preset": name, "budget": budget, "step_ms": round(step * 1e3, 3), "share": None}
                rows.append(row)
                schedule = method.schedule(budget, host.encode) if _possible(method, budget) else None
                if schedule is None or schedule.trigger == "never":
                    why = "has no events" if schedule else f"not possible with a prompt of {PROMPT}"
                    print(f"  {name:22} {why}")
                    continue
                cost = event_time(method.bind(host), args.batch, budget, args.delta, args.repeat, device)
                # Chains compress one after the other here, each every Δ/k steps.
                interval = schedule.split()[0].delta
                cost *= schedule.chains
                row |= {"event_ms": round(cost * 1e3, 3), "share": cost / (step * interval)}
                print(f"  {name:22} {row['event_ms']:10.1f} ms  {row['share']:7.2%}")
    return rows


def _possible(method: Method, budget: int) -> bool:
    try:
        method.check(PROMPT, budget)
    except MethodError:
        return False
    return True


if __name__ == "__main__":
    main()
