"""Teacher-forced replay, tokens up to the next event in one forward, beside token by token: same model, same tokens,
same run.

    python benchmarks/replay.py [--model embedded:chain-m] [--new 640] [--slots 1 16] [--threads 1] [--json FILE]

Both ways go through `engine.replay`, one after the other, best of --repeat, and must agree (NLL within 1e-4 in fp32).
Continuations are random tokens: speed does not depend on what they say.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from cask_eval.engine import registry
from cask_eval.engine.contract import Host
from cask_eval.engine.model import geometry, load_model
from cask_eval.engine.replay import Given, replay
from cask_eval.protocol.model import Model
from cask_eval.runner.models import located
from cask_eval.workspace import Workspace


def timed(model, given, policy, budget, slots, chunk) -> tuple[float, list]:
    began = time.perf_counter()
    found = list(replay(model, given, policy, policy.schedule(budget), slots=slots, chunk=chunk))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, sorted(found, key=lambda r: r.key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:chain-m")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=641, help="given tokens, of which all but the last are fed")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--delta", type=int, default=128)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 16], help="sequences in flight, and their number")
    parser.add_argument("--presets", nargs="+", default=["fullkv", "recency", "h2o", "snapkv", "triattention", "cask"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = located(Model(id=args.model, name="model"), Workspace("."))
    model, _ = load_model(source, device=args.device, dtype=args.dtype)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (max(args.slots), args.prompt + args.new), generator=draw).tolist()
    given = [Given(i, tuple(x[: args.prompt]), i, tuple(x[args.prompt :])) for i, x in enumerate(ids)]
    calibration = source / "calibration.safetensors" if args.model.startswith("embedded:") else None
    host = Host(geometry(model), str(calibration) if calibration else None, lambda text: [])
    rows = []
    for preset in args.presets:
        params = {"delta": args.delta, "prompt": "compete", "trigger": "slack", "count_prompt": True}
        cls = registry.load(preset)
        policy = cls.make(preset, {k: v for k, v in params.items() if k in cls.parameters()}).bind(host)
        for slots in args.slots:
            some, best, found = given[:slots], {}, {}
            for _ in range(args.repeat):
                for name, chunk in (("one by one", 1), ("together", None)):
                    seconds, found[name] = timed(model, some, policy, args.budget, slots, chunk)
                    best[name] = min(seconds, best.get(name, seconds))
            apart = max(abs(a.tokens.nll - b.tokens.nll).max() for a, b in zip(*found.values(), strict=True))
            assert [r.residency for r in found["one by one"]] == [r.residency for r in found["together"]]
            assert args.dtype != "float32" or apart < 1e-4, apart
            speed = {name: slots * args.new / seconds for name, seconds in best.items()}
            events, ratio = len(found["together"][0].residency.events), speed["together"] / speed["one by one"]
            rows.append({"preset": preset, "slots": slots, "events": events, **speed})
            print(
                f"{preset:14} {slots:3d} in flight {events:3d} events   one by one {speed['one by one']:9.0f} tokens/s"
                f"   together {speed['together']:9.0f} tokens/s   ratio {ratio:6.1f}",
                flush=True,
            )
    if args.json:
        about = {"torch": torch.__version__, "threads": args.threads, **vars(args)}
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"about": about, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
