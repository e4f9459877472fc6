"""How near decoding comes to what the memory and the arithmetic of a device allow: one command on a GPU machine.

    python benchmarks/gpu.py [--models qwen-7b llama-8b] [--budgets 64 128 512] [--batches 1 16 64 256 512]
                             [--json FILE] [--plot FILE] [--minutes M]

Random weights in the shape of DeepSeek-R1-Distill-Qwen-7B and -Llama-8B, bf16, no download. First the device itself is
measured: bytes a second of a large copy (read and written bytes both count), and multiplications and additions a second
of a large matrix product. Then, per model, budget and batch, the engine decodes with TriAttention (Δ = 128, prompts of
96 to 160 tokens, as many sequences as slots). A step's time is the difference of two runs of different length, so that
reading the prompts, recording the steps and the start are not in it; compression events are.

The roofline of a step is the longer of two times: weights and keys and values read once each at the measured copy rate,
and 2 × parameters operations a row (and attention's) at the measured product rate. "share" is roofline / measured.
transformers' generate() runs beside it at the same batch, in the same process, with its full cache. What does not fit
into memory is said and left out. CASK_EVAL_KERNELS=all before the command puts the Triton kernels in (docs/SCALE.md).

    python benchmarks/gpu.py --models llama-100m --unequal 16

compares, instead, outputs of unequal length: four times as many prompts as sequences at once, sampled at temperature 1
until a token out of one in a hundred, and generate() waits for the longest of each batch. Each counts its own tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from cask_methods.calibration import Statistics
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from cask_eval import shapes
from cask_eval.engine import decode, kernels, registry
from cask_eval.engine.attention import NAME
from cask_eval.engine.contract import Host
from cask_eval.engine.model import geometry
from cask_eval.engine.sampling import Sampling
from cask_eval.engine.usage import Usage

MODELS = {
    "qwen-7b": (Qwen2ForCausalLM, Qwen2Config, shapes.MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"]),
    "llama-8b": (LlamaForCausalLM, LlamaConfig, shapes.MODELS["deepseek-ai/DeepSeek-R1-Distill-Llama-8B"]),
    "llama-100m": (LlamaForCausalLM, LlamaConfig, shapes.Shape(12, 768, 2048, 12, 4, 64, 16_384, True)),
    "tiny": (LlamaForCausalLM, LlamaConfig, shapes.Shape(2, 64, 128, 4, 2, 16, 256, True)),
}
TARGETS = "share ≥ 80 % for batch 1…64, ≥ 20,000 tokens/s at 256 and more, events ≤ 5 %"


@dataclass(frozen=True)
class Device:
    """What the device was measured to do: bytes and operations a second."""

    copy: float
    product: float


def synchronised(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(run, amount: float, device: torch.device, repeat: int = 5) -> float:
    best = float("inf")
    for turn in range(repeat + 1):
        began = synchronised(device)
        run()
        took = synchronised(device) - began
        best = min(best, took) if turn else best
    return amount / best


def first(found: tuple) -> float:
    return found[0]


def measured(device: torch.device, dtype: torch.dtype) -> Device:
    size, side = (1 << 32, 8192) if device.type == "cuda" else (1 << 27, 1024)
    a = torch.ones(size // 2, dtype=torch.int16, device=device)
    b = torch.empty_like(a)
    copy = rate(lambda: b.copy_(a), 2 * size, device)
    del a, b
    x, y = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return Device(copy, rate(lambda: x @ y, 2 * side**3, device))


def build(name: str, dtype: torch.dtype, device: torch.device):
    kind, config, shape = MODELS[name]
    made = config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind(made).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    return model, shape


def prompts(count: int, vocabulary: int) -> list[tuple[int, ...]]:
    g = torch.Generator().manual_seed(5)
    lengths = torch.randint(96, 161, (count,), generator=g).tolist()
    return [tuple(torch.randint(1, vocabulary, (n,), generator=g).tolist()) for n in lengths]


class Events:
    """Seconds that the device spends between the beginning and the end of compression events, without waiting."""

    def __init__(self, device: torch.device):
        self.device, self.marks, self.seconds = device, [], 0.0

    def __enter__(self):
        self.inner = inner = decode._Run._compress

        def compress(run, due):
            if self.device.type == "cuda":
                pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                pair[0].record()
                inner(run, due)
                pair[1].record()
                self.marks.append(pair)
            else:
                began = time.perf_counter()
                inner(run, due)
                self.seconds += time.perf_counter() - began

        decode._Run._compress = compress
        return self

    def __exit__(self, *_):
        decode._Run._compress = self.inner
        synchronised(self.device)
        self.seconds += sum(a.elapsed_time(b) for a, b in self.marks) / 1e3


def engine(model, policy, budget: int, asked: list, new: int, device: torch.device):
    """(seconds, event seconds, residency of the first trial, usage) of one run with as many slots as requests."""
    usage = Usage()
    requests = [decode.Request(i, p, i) for i, p in enumerate(asked)]
    began = synchronised(device)
    with Events(device) as events:
        out = list(
            decode.generate(
                model,
                requests,
                policy,
                policy.schedule(budget),
                Sampling(new),
                slots=len(asked),
                poll=1 << 30,
                usage=usage,
            )
        )
    return synchronised(device) - began, events.seconds, out[0].residency, usage


def padded(asked: list, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts as generate() wants them, padded on the left, and which places hold tokens."""
    longest = max(map(len, asked))
    ids = [[0] * (longest - len(p)) + list(p) for p in asked]
    there = [[0] * (longest - len(p)) + [1] * len(p) for p in asked]
    return torch.tensor(ids, device=device), torch.tensor(there, device=device)


@torch.inference_mode()
def theirs(model, asked: list, new: int, device: torch.device) -> float:
    ids, mask = padded(asked, device)
    began = synchronised(device)
    model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    return synchronised(device) - began


def roofline(of: Device, shape: shapes.Shape, itemsize: int, batch: int, entries: float) -> float:
    """Least seconds of a decode step of `batch` rows that each hold `entries` entries per layer and head."""
    embedding = 0 if shape.tied else shape.vocabulary * shape.hidden  # a row of it is looked up
    weights = (shape.parameters - embedding) * itemsize
    held = batch * entries * shape.layers * shape.kv_heads * 2 * shape.head_dim * itemsize
    attention = 4 * entries * shape.layers * shape.query_heads * shape.head_dim
    operations = batch * (2 * (shape.parameters - embedding) + attention)
    return max((weights + held) / of.copy, operations / of.product)


@torch.inference_mode()
def unequal(args, name: str, model, shape: shapes.Shape, batch: int, device: torch.device) -> dict:
    """Tokens a second at `batch` sequences at once, for outputs that end where they end."""
    asked, stop = prompts(4 * batch, shape.vocabulary), tuple(range(1, shape.vocabulary, 100))
    row = {"model": name, "batch": batch}
    model.set_attn_implementation("sdpa")
    began, count = synchronised(device), 0
    for i in range(0, len(asked), batch):
        ids, mask = padded(asked[i : i + batch], device)
        sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": list(stop)}
        out = model.generate(ids, attention_mask=mask, max_new_tokens=args.new, pad_token_id=0, **sampled)
        for said in out[:, ids.shape[1] :].tolist():
            count += next((k + 1 for k, token in enumerate(said) if token in set(stop)), args.new)
    row["generate_tokens_per_s"] = count / (synchronised(device) - began)
    model.set_attn_implementation(NAME)
    arms = {"fullkv": ({}, 1), "recency": ({"delta": args.delta, "prompt": "compete"}, args.budgets[0])}
    for preset, (params, budget) in arms.items():
        policy = registry.load(preset).make(preset, params).bind(Host(geometry(model)))
        sampling = Sampling(args.new, 1.0, 1.0, stop)
        requests = [decode.Request(i, p, i) for i, p in enumerate(asked)]
        began = synchronised(device)
        made = decode.generate(model, requests, policy, policy.schedule(budget), sampling, slots=batch)
        count = sum(len(out.output_ids) for out in made)
        ours, theirs = count / (synchronised(device) - began), row["generate_tokens_per_s"]
        row[f"{preset}_tokens_per_s"] = ours
        print(
            f"{name} unequal lengths, batch {batch:4}: {preset} {ours:9.1f} tokens/s, generate() {theirs:9.1f}: "
            f"{ours / theirs:.2f} ×"
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["qwen-7b", "llama-8b"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256, 512])
    parser.add_argument("--delta", type=int, default=128)
    parser.add_argument("--new", type=int, default=640, help="tokens of the longer run; the shorter one has half")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each length, the fastest of which counts")
    parser.add_argument("--unequal", type=int, nargs="+", default=[], metavar="BATCH", help="see above")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after so long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, began = torch.device(args.device), time.monotonic()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    of, rows = measured(device, dtype), []
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    in_use = ", ".join(kernels.chosen()) or "none"
    print(f"{name}: copies {of.copy / 1e12:.3f} TB/s, products {of.product / 1e12:.2f} Tflop/s ({dtype})")
    print(f"{TARGETS}\nkernels in use ({kernels.VARIABLE}): {in_use}")
    for model_name in args.models:
        model, shape = build(model_name, dtype, device)
        for batch in args.unequal:
            rows.append(unequal(args, model_name, model, shape, batch, device))
        if not args.unequal:
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(args, model_name, model, shape, of, device, dtype, Path(folder), began)
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    about = {"device": name, "torch": torch.__version__, "kernels": in_use, **asdict(of), **vars(args)}
    if args.json:
        Path(args.json).write_text(json.dumps({"about": about, "rows": rows}, indent=1), encoding="utf-8")
    if args.plot and not args.unequal:
        plot(rows, name, args.plot)


def measure(args, model_name, model, shape, of, device, dtype, folder, began) -> list[dict]:
    model.set_attn_implementation(NAME)
    one, half = geometry(model), shape.head_dim // 2
    re, im = torch.randn(2, shape.layers, shape.query_heads, half, generator=torch.Generator().manual_seed(0))
    Statistics(re, im, torch.hypot(re, im) * 1.5, one.inv_freq, one.name).save(folder / "random.safetensors")
    method = registry.load("triattention").make("triattention", {"delta": args.delta, "prompt": "compete"})
    policy = method.bind(Host(one, str(folder / "random.safetensors")))
    rows, generated = [], {}
    for batch in args.batches:
        asked = prompts(batch, shape.vocabulary)
        for budget in args.budgets:
            if (time.monotonic() - began) / 60 > args.minutes:
                print(f"{model_name} b = {budget} batch {batch}: left out, {args.minutes:g} minutes are over")
                continue
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                runs = [
                    min((engine(model, policy, budget, asked, new, device) for _ in range(args.repeat)), key=first)
                    for new in (args.new // 2, args.new)
                ]
            except torch.OutOfMemoryError:
                print(f"{model_name} b = {budget} batch {batch}: does not fit")
                continue
            steps = args.new - args.new // 2
            step = (runs[1][0] - runs[0][0]) / steps
            if step <= 0:
                print(f"{model_name} b = {budget} batch {batch}: the longer run was the faster one; give --new more")
                continue
            entries = float(runs[1][2].mean)
            least = roofline(of, shape, dtype.itemsize, batch, entries)
            row = {
                "model": model_name,
                "budget": budget,
                "batch": batch,
                "tokens_per_s": batch / step,
                "step_ms": step * 1e3,
                "roofline_ms": least * 1e3,
                "share": least / step,
                "events": (runs[1][1] - runs[0][1]) / (steps * step),
                "mean_cache": entries,
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
            }
            rows.append(row)
            print(
                f"{model_name} b = {budget:4} batch {batch:4}: {row['tokens_per_s']:9.1f} tokens/s  "
                f"{row['step_ms']:8.2f} ms a step, at best {row['roofline_ms']:7.2f} ({row['share']:.0%})  "
                f"events {row['events']:5.1%}" + (f"  peak {row['peak_gib']:.1f} GiB" if row["peak_gib"] else "")
            )
        model.set_attn_implementation("sdpa")
        try:
            if (time.monotonic() - began) / 60 <= args.minutes:
                short, long = (theirs(model, asked, new, device) for new in (args.new // 4, args.new // 2))
                if long > short:
                    generated[batch] = batch * (args.new // 2 - args.new // 4) / (long - short)
                    print(f"{model_name} generate() batch {batch:4}: {generated[batch]:9.1f} tokens/s, full cache")
                else:
                    print(f"{model_name} generate() batch {batch}: the longer run was the faster one; give --new more")
        except torch.OutOfMemoryError:
            print(f"{model_name} generate() batch {batch}: does not fit")
        model.set_attn_implementation(NAME)
        for row in rows:
            if row["batch"] == batch and batch in generated:
                row["generate_tokens_per_s"] = generated[batch]
                print(f"  b = {row['budget']}: {row['tokens_per_s'] / generated[batch]:.2f} × generate() at this batch")
    return rows


def plot(rows: list[dict], name: str, file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    models = list(dict.fromkeys(r["model"] for r in rows))
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models):
        own = [r for r in rows if r["model"] == model]
        for number, budget in enumerate(dict.fromkeys(r["budget"] for r in own)):
            some = [r for r in own if r["budget"] == budget]
            x = [r["batch"] for r in some]
            axes.plot(x, [r["tokens_per_s"] for r in some], "o-", color=f"C{number}", label=f"b = {budget}")
            axes.plot(x, [1e3 * r["batch"] / r["roofline_ms"] for r in some], ":", color=f"C{number}")
        beside = {r["batch"]: r["generate_tokens_per_s"] for r in own if "generate_tokens_per_s" in r}
        axes.plot(list(beside), list(beside.values()), "s--", color="0.4", label="generate(), full cache")
        axes.set(xscale="log", yscale="log", xlabel="sequences at once", ylabel="tokens a second", title=model)
        axes.grid(alpha=0.3)
        axes.legend(title="dotted: roofline")
    figure.suptitle(name)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
