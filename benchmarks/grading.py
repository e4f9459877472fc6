"""How many answers a second the grader grades, and how long hostile ones take.

    python benchmarks/grading.py [--workers 2] [--count 3000] [--data FOLDER] [--json FILE]

Ordinary answers are made here: numbers, fractions, roots, polynomials, tuples, intervals, sets, matrices, units and
words in about the proportions of MATH-500, rewritten or wrong, each in its box at the end of 4 kB of text. No two pairs
are alike, so that nothing is answered from memory. With --data, a folder with math500/test.jsonl, its reference
solutions are graded as well. "last stage" are answers that go on to math-verify; "math-verify alone" is that library
on the same ordinary texts, beside the grader, in the same worker processes. Seconds are wall time; starting the workers
counts where it says so.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from cask_eval.grading import VERSION, Grader

TEXT = "We consider the cases one after another, and find that $a_n = 2a_{n-1} + 3$ holds for all $n > 1$. "

HOSTILE = {
    "10^{10^{10}}": r"\boxed{10^{10^{10}}}",
    "9^{9^{9^9}}": r"\boxed{9^{9^{9^9}}}",
    "(10^{10})!": r"\boxed{(10^{10})!}",
    "100 kB of {": "{" * 100_000,
    r"100 kB of \boxed{": r"\boxed{" * 14_000,
    r"100 kB of \(": r"\( " * 33_000,
    "huge matrix": r"\boxed{\begin{pmatrix}" + r"1 & 2 \\ " * 1_700 + r"\end{pmatrix}}",
    "deep roots": r"\boxed{" + r"\sqrt{" * 500 + "2" + "}" * 501,
    "hard integral": r"\boxed{\int_0^\infty \frac{\sin(x^{x})}{x^{5}+\log x+1} dx}",
}


def ordinary(rng: random.Random) -> tuple[str, str]:
    """A reference and an answer: three in four say the same in other words."""
    a, b, c = rng.randrange(2, 10_000), rng.randrange(2, 99), rng.randrange(2, 99)
    d = a if rng.random() < 0.75 else a + 1
    kinds = [
        (62, lambda: (str(a), f"{d}.0" if rng.random() < 0.3 else f"{d:,}")),
        (14, lambda: (rf"\frac{{{a}}}{{{b}}}", f"{d}/{b}")),
        (4, lambda: (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{b}}} \cdot {d}")),
        (5, lambda: (f"{b}x^2 + {a}x - {c}", f"{d}x + {b}x^2 - {c}")),
        (4, lambda: (f"({a}, {b})", rf"\left( {d}, {b} \right)")),
        (2, lambda: (f"[{a}, {a + b})", rf"{d} \le x < {a + b}")),
        (2, lambda: (rf"{a}, {b}", rf"\{{ {b}, {d} \}}")),
        (2, lambda: (rf"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}", rf"\begin{{bmatrix}}{d}\\{b}\end{{bmatrix}}")),
        (4, lambda: (rf"{a} \text{{ cm}}", str(d))),
        (1, lambda: (r"\text{east}" + " " * (a % 3), "East" if d == a else "west")),
    ]  # fmt: skip
    return rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0]()


def hard(rng: random.Random) -> tuple[str, str]:
    n = rng.randrange(2, 400)
    return str(n * (n + 1) // 2), rf"\sum_{{k=1}}^{{{n}}} k"


def wrap(answer: str, length: int = 4_000) -> str:
    return (TEXT * (length // len(TEXT) + 1))[:length] + rf"\n\nTherefore $x = \boxed{{{answer}}}$."


def timed(grader: Grader, pairs: list[tuple[str, str]], **options: bool) -> tuple[float, list]:
    began = time.perf_counter()
    verdicts = grader.grade_many(pairs, **options)
    return time.perf_counter() - began, verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=3_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = random.Random(1)
    made = list(dict.fromkeys(ordinary(rng) for _ in range(2 * args.count)))[: args.count]
    texts = [(gold, wrap(answer)) for gold, answer in made]
    tail = list(dict.fromkeys(hard(rng) for _ in range(300)))[:200]
    rows: dict[str, dict[str, float]] = {}

    def note(name: str, count: int, seconds: float, **more: float) -> None:
        rows[name] = {"answers": count, "seconds": round(seconds, 3), "per_second": round(count / seconds, 1), **more}
        extra = "".join(f"   {key} {value}" for key, value in more.items())
        print(f"{name:32}{count:7} answers {seconds:9.3f} s {count / seconds:9.1f} answers/s{extra}")

    print(f"{VERSION}, {args.workers} workers")
    with Grader(args.workers) as grader:
        seconds, _ = timed(grader, texts[:1])
        note("first answer, start included", 1, seconds)
        timed(grader, [("1", rf"\boxed{{{n}.0}}") for n in range(4 * args.workers)])
        seconds, verdicts = timed(grader, texts)
        note("ordinary, 4 kB of text", len(texts), seconds, right=sum(v.correct for v in verdicts),
             last_stage=sum(v.engine == "math-verify" for v in verdicts))  # fmt: skip
        seconds, _ = timed(grader, texts)
        note("the same again, remembered", len(texts), seconds)
        others = list(dict.fromkeys(p for p in (ordinary(rng) for _ in range(3_000)) if p not in set(made)))[:1000]
        seconds, _ = timed(grader, [(gold, wrap(answer, 32_000)) for gold, answer in others])
        note("ordinary, 32 kB of text", len(others), seconds)
        seconds, verdicts = timed(grader, [(gold, wrap(answer)) for gold, answer in tail])
        note("last stage (sums)", len(tail), seconds, right=sum(v.correct for v in verdicts))
        alone = texts[:200]
        began = time.perf_counter()
        grader.grade_many(alone, compare=True)
        note("math-verify alone", len(alone), time.perf_counter() - began)
        if args.data:
            lines = (args.data / "math500" / "test.jsonl").read_text(encoding="utf-8").split("\n")
            read = [json.loads(line) for line in lines if line]
            seconds, verdicts = timed(grader, [(row["answer"], row["solution"] + " ") for row in read])
            note("MATH-500 reference solutions", len(read), seconds, right=sum(v.correct for v in verdicts))
    print()
    with Grader(1) as grader:
        grader.grade("1", r"\boxed{1.0}")
        for name, output in HOSTILE.items():
            verdict = grader.grade("5", output)
            print(f"{name:24}{verdict.seconds:8.3f} s   {verdict.how} ({verdict.reason})")
            rows[name] = {"seconds": round(verdict.seconds, 3)}
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
