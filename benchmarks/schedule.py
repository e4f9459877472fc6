"""What scheduling is worth: a simulation of decode steps over real length distributions, from one card to 64.

    python benchmarks/schedule.py [--data FOLDER] [--records FILE ...] [--mean 4000] [--gpu h100-80gb] [--json FILE]

Lengths: with --data those of MATH-500's reference solutions, in characters, stretched to a mean of --mean tokens, which
keeps their spread and is capped at --cap; with --records the outputs of finished studies; without either, those of the
studies in reports/. A step takes the longer of --step-ms and what reading the weights and the caches of the rows in
flight takes at --efficiency of the card's bandwidth (`cask_eval.costs`); nothing here was measured on a GPU.

static: batches of equal size, each as long as its longest. refill: a free slot takes the next trial. longest first: the
same, in the order of lengths that another arm had (here the true ones times a random factor between 0.7 and 1.4).
Cards take blocks of trials from one queue (`--block`), so that the last block decides when all are done.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import random
from pathlib import Path

from cask_eval.shapes import GPUS, MODELS

MODEL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
CARDS = (1, 2, 4, 8, 16, 32, 64)


def of_records(files: list[Path]) -> list[int]:
    out = []
    for file in files:
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8") as lines:
            out += [json.loads(line)["output_tokens"] for line in lines]
    return out


def of_data(folder: Path, mean: float, cap: int) -> list[int]:
    lines = (folder / "math500" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    raw = [len(json.loads(line)["solution"]) for line in lines]
    return [max(1, min(cap, round(n * mean * len(raw) / sum(raw)))) for n in raw]


class Card:
    """One card: seconds that its trials take, by how many are in flight."""

    def __init__(self, args: argparse.Namespace):
        shape, gpu = MODELS[MODEL], GPUS[args.gpu]
        self.weights = shape.parameters * 2
        self.row = (args.budget + args.delta / 2) * shape.layers * shape.kv_heads * 2 * shape.head_dim * 2
        self.bandwidth, self.floor = gpu.bandwidth * args.efficiency, args.step_ms / 1e3

    def step(self, rows: int) -> float:
        return max(self.floor, (self.weights + rows * self.row) / self.bandwidth)


def static(lengths: list[int], slots: int, card: Card) -> tuple[float, int]:
    """(seconds, rows computed) of batches that wait for their longest."""
    seconds, rows = 0.0, 0
    for start in range(0, len(lengths), slots):
        some = lengths[start : start + slots]
        seconds += max(some) * card.step(len(some))
        rows += max(some) * len(some)
    return seconds, rows


def refill(lengths: list[int], slots: int, card: Card) -> tuple[float, int]:
    """The same where a free slot takes the next trial: from one end to the next the number in flight is the same."""
    waiting = iter(lengths)
    running = [n for _, n in zip(range(slots), waiting)]
    heapq.heapify(running)
    seconds, rows, now = 0.0, 0, 0
    while running:
        end = running[0]
        seconds += (end - now) * card.step(len(running))
        rows += (end - now) * len(running)
        now = end
        heapq.heappop(running)
        if (more := next(waiting, None)) is not None:
            heapq.heappush(running, now + more)
    return seconds, rows


def cluster(lengths: list[int], slots: int, card: Card, cards: int, block: int) -> float:
    """Seconds until the last of `cards` is done with blocks that they take from one queue."""
    free = [0.0] * cards
    for start in range(0, len(lengths), block):
        heapq.heapreplace(free, free[0] + refill(lengths[start : start + block], slots, card)[0])
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--records", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--mean", type=float, default=4000, help="tokens of a mean output, with --data")
    parser.add_argument("--cap", type=int, default=16384)
    parser.add_argument("--arms", type=int, default=36, help="cells × arms that run the same problems")
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 256, 512])
    parser.add_argument("--block", type=int, default=500, help="trials that a card takes at once")
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--delta", type=int, default=128)
    parser.add_argument("--gpu", choices=GPUS, default="h100-80gb")
    parser.add_argument("--efficiency", type=float, default=0.6)
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.data:
        lengths = of_data(args.data, args.mean, args.cap)
    else:
        root = Path(__file__).parents[1]
        lengths = of_records(args.records or sorted(root.glob("reports/*/heldout.jsonl.gz")))
    card, draw = Card(args), random.Random(1)
    guessed = sorted(lengths, key=lambda n: -n * draw.uniform(0.7, 1.4))
    mean = sum(lengths) / len(lengths)
    print(f"{len(lengths)} trials of {min(lengths)} to {max(lengths)} tokens, mean {mean:.0f}; {MODEL} on {args.gpu}")
    rows = []
    for slots in args.slots:
        for name, found in (
            ("static", static(lengths, slots, card)),
            ("refill", refill(lengths, slots, card)),
            ("longest first", refill(guessed, slots, card)),
        ):
            seconds, computed = found
            of_slots = sum(lengths) / (slots * seconds / card.step(slots))
            rows.append({"slots": slots, "order": name, "seconds": seconds, "of_use": sum(lengths) / computed})
            print(
                f"{slots:4} slots  {name:14} {seconds / 60:8.1f} min  {sum(lengths) / seconds:9.0f} tokens/s  "
                f"rows of use {sum(lengths) / computed:4.0%}  of the slots' time {of_slots:4.0%}"
            )
    whole = lengths * args.arms
    print(f"\n{args.arms} arms, {len(whole):,} trials, {args.slots[-1]} slots, blocks of {args.block}:")
    alone = None
    for cards in CARDS:
        ordered = [n for _ in range(args.arms) for n in guessed]
        seconds = cluster(ordered, args.slots[-1], card, cards, args.block)
        alone = alone or seconds
        rows.append({"cards": cards, "seconds": seconds, "speedup": alone / seconds})
        print(
            f"{cards:3} cards {seconds / 3600:7.2f} h  {alone / seconds:5.1f} × one card  "
            f"{cards * seconds / 3600:7.1f} card hours"
        )
    if args.json:
        about = {name: str(value) for name, value in vars(args).items()}
        Path(args.json).write_text(json.dumps({"about": about, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
