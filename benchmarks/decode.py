"""Tokens per second of the slot engine beside transformers' generate(), same model, same prompts, same run.

    python benchmarks/decode.py [--model embedded:chain-m] [--problems 64] [--threads 1] [--json FILE]

Each line is measured in the same process, one after the other, best of --repeat. generate() keeps the full cache;
the engine runs with the full cache and with every compressing preset, so that ratios separate batching from eviction.
All runs decode the same number of tokens per prompt (no stop token), so that a ratio compares equal work. In the end the
same is done with outputs of unequal length: the token that the full cache's outputs reach at the most different places
becomes the stop token; generate() then waits for the longest of each batch, the engine fills the slots anew. Tokens of
stopped sequences do not count. Only the full cache puts out the same under both, so only it is compared there.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager

import torch

from cask_eval import embedded
from cask_eval.engine import decode, registry
from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Host
from cask_eval.engine.model import geometry, load_model
from cask_eval.engine.sampling import Sampling
from cask_eval.tasks import chain


@contextmanager
def timed(into: list[float]):
    began = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    into.append(time.perf_counter() - began)


def engine(model, policy, budget, prompts, new, slots, stop=(), into=None) -> tuple[float, float]:
    """(seconds, seconds spent in compression events). `into` gets the outputs."""
    events: list[float] = []
    inner = decode._Run._compress

    def compress(self, due):
        with timed(events):
            inner(self, due)

    decode._Run._compress = compress
    total: list[float] = []
    try:
        with timed(total):
            requests = [decode.Request(i, p, i) for i, p in enumerate(prompts)]
            sampling = Sampling(new, stop_ids=stop)
            for out in decode.generate(model, requests, policy, policy.schedule(budget), sampling, slots=slots):
                if into is not None:
                    into.append(out.output_ids)
    finally:
        decode._Run._compress = inner
    return total[0], sum(events)


@torch.inference_mode()
def transformers_generate(model, prompts, new, batch, pad, stop=None) -> float:
    total: list[float] = []
    with timed(total):
        for i in range(0, len(prompts), batch):
            rows = prompts[i : i + batch]
            longest = max(map(len, rows))
            ids = torch.tensor([[pad] * (longest - len(r)) + list(r) for r in rows], device=model.device)
            mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=model.device)
            least = {"min_new_tokens": new} if stop is None else {"eos_token_id": stop}
            model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=pad, **least)
    return total[0]


def stop_token(outputs: list[tuple[int, ...]]) -> int:
    """The token that the outputs reach first at the most different places, among those that most of them reach."""

    def spread(token: int) -> float:
        first = [out.index(token) + 1 for out in outputs if token in out]
        if len(first) < 0.7 * len(outputs):
            return 0.0
        lengths = torch.tensor([out.index(token) + 1.0 if token in out else float(len(out)) for out in outputs])
        return float(lengths.std() / lengths.mean()) if lengths.mean() > 20 else 0.0

    return max({token for out in outputs for token in out}, key=spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:chain-m")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--new", type=int, default=200, help="tokens generated per prompt")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--delta", type=int, default=16)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = embedded.path(args.model.removeprefix("embedded:")) if args.model.startswith("embedded:") else args.model
    model, tokenizer = load_model(source, device=args.device)
    model.generation_config.eos_token_id = None
    problems = chain.problems({"seed": 7, "count": args.problems})
    prompts = [tuple(tokenizer(p.prompt)["input_ids"]) for p in problems]
    few = prompts[: max(4, args.problems // 8)]
    calibration = source / "calibration.safetensors" if args.model.startswith("embedded:") else None
    shape = geometry(model)
    rows = []

    def add(name, batch, run, count):
        best = min((run() for _ in range(args.repeat)), key=lambda r: r[0])
        rows.append(
            {
                "run": name,
                "batch": batch,
                "tokens_per_s": round(count * args.new / best[0], 1),
                "event_share": round(best[1] / best[0], 4),
            }
        )
        print(f"{name:26} batch {batch:4d} {rows[-1]['tokens_per_s']:10.1f} tokens/s   events {best[1] / best[0]:6.1%}")

    model.set_attn_implementation("sdpa")
    pad = tokenizer.pad_token_id or 0
    add("transformers generate", 1, lambda: (transformers_generate(model, few, args.new, 1, pad), 0.0), len(few))
    for batch in args.slots[1:]:
        add(
            "transformers generate",
            batch,
            lambda batch=batch: (transformers_generate(model, prompts, args.new, batch, pad), 0.0),
            len(prompts),
        )
    model.set_attn_implementation(NAME)
    presets = {"fullkv": {}, "recency": {"delta": args.delta}, "random_pp": {"delta": args.delta}}
    if calibration is not None:
        presets |= {"triattention": {"delta": args.delta}, "alpha": {"delta": args.delta, "lambda": "0.5"}}
    for preset, params in presets.items():
        policy = registry.load(preset).make(preset, params).bind(Host(shape, str(calibration) if calibration else None))
        for slots in args.slots:
            some = few if slots == 1 else prompts
            add(
                f"engine {preset}",
                slots,
                lambda policy=policy, some=some, slots=slots: engine(model, policy, args.budget, some, args.new, slots),
                len(some),
            )

    full = registry.load("fullkv").make("fullkv", {}).bind(Host(shape, None))
    outputs: list[tuple[int, ...]] = []
    engine(model, full, 1, prompts, args.new, max(args.slots), into=outputs)
    stop = stop_token(outputs)
    lengths = [out.index(stop) + 1 if stop in out else len(out) for out in outputs]
    print(f"\nunequal lengths: {min(lengths)} to {max(lengths)}, mean {sum(lengths) / len(lengths):.0f}")
    for batch in args.slots[1:]:
        ours = min(engine(model, full, 1, prompts, args.new, batch, stop=(stop,))[0] for _ in range(args.repeat))
        model.set_attn_implementation("sdpa")
        theirs = min(transformers_generate(model, prompts, args.new, batch, pad, stop) for _ in range(args.repeat))
        model.set_attn_implementation(NAME)
        for name, took in (("transformers generate", theirs), ("engine fullkv", ours)):
            rate = sum(lengths) / took
            rows.append({"run": f"{name}, unequal", "batch": batch, "tokens_per_s": round(rate, 1), "event_share": 0})
        print(
            f"batch {batch:4d}   generate() {sum(lengths) / theirs:9.1f} tokens/s   engine {sum(lengths) / ours:9.1f} "
            f"tokens/s   {theirs / ours:5.2f} ×"
        )

    speed = {(r["run"], r["batch"]): r["tokens_per_s"] for r in rows if not r["run"].endswith("unequal")}
    print("\nratios, same run")
    for (name, batch), value in speed.items():
        if name.startswith("engine"):
            one = value / speed["transformers generate", 1]
            same = speed.get(("transformers generate", batch))
            print(
                f"{name:26} batch {batch:4d}  {one:6.2f} × generate() at batch 1"
                + (f"   {value / same:5.2f} × generate() at batch {batch}" if same and batch > 1 else "")
            )
    if args.json:
        about = {"torch": torch.__version__, "device": str(model.device), "threads": args.threads, **vars(args)}
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"about": about, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
