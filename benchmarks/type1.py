"""How often each test rejects when there is nothing to find.

    python benchmarks/type1.py [--replicates 20000] [--seed 1]

First, one sample per problem: exact sizes over the discordance, by full enumeration (two-sided, no simulation). The
null is the weak one, p10 = p01; with one sample it is the strong one too.

Then several samples, by simulation with standard errors. Strong null: both arms have the same chances on every problem,
so that signs are exchangeable. Weak null: effects differ from problem to problem and cancel on average, symmetrically
or askew: few problems lose much and many win a little, so that no sign test is exact. `naive` resamples rows of problem
× sample as if they were independent, which is what not to do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from math import sqrt

import numpy as np

from cask_eval.stats import _draws
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.power import exact_power
from cask_eval.stats.procedures import PROCEDURES

LEVELS = (0.05, 0.0125)
ONE_SAMPLE = ("paired_bootstrap", "mcnemar_exact", "mcnemar_midp")  # sign_flip is mcnemar_exact
N, DISCORDANT = 100, (4, 6, 10, 15, 20, 25, 40)
PROBLEMS, SAMPLES = 100, 4


def exact_sizes() -> Iterator[str]:
    yield f"n = {N}, one sample; exact size at nominal " + " / ".join(f"{a:g}" for a in LEVELS)
    yield f"{'expected to differ':>20}" + "".join(f"{name:>22}" for name in ONE_SAMPLE)
    for d in DISCORDANT:
        # A test of no difference rejects either way equally often.
        sizes = [[2 * exact_power(N, d / N, 0, a, procedure=name) for a in LEVELS] for name in ONE_SAMPLE]
        yield f"{d:>20}" + "".join(f"{f'{five:.4f} / {little:.4f}':>22}" for five, little in sizes)


def strong(base: np.ndarray, sort: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same chances in both arms."""
    return base, base


def symmetric(base: np.ndarray, sort: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half of the problems 40 points better, half 40 points worse."""
    middle = 0.2 + 0.6 * base
    return middle + np.where(sort < 0.5, -0.2, 0.2), middle + np.where(sort < 0.5, 0.2, -0.2)


def askew(base: np.ndarray, sort: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One problem in ten 72 points worse, the others 8 points better."""
    loses = sort < 0.1
    return np.where(loses, 0.86, 0.2 + 0.6 * base), np.where(loses, 0.14, 0.28 + 0.6 * base)


Null = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # base, sort → either arm's chances
NULLS: dict[str, Null] = {"strong": strong, "weak, symmetric": symmetric, "weak, askew": askew}


def naive(right: np.ndarray) -> float:
    """Two-sided p of a bootstrap that draws rows of problem × sample, sample j paired with sample j; right
    [arm, problem, sample]. Exact, like the one it is compared with."""
    rows = right[1].astype(int) - right[0].astype(int)
    return PROCEDURES["paired_bootstrap"](Pairs.from_differences(rows.ravel().tolist()), "two-sided")


def simulated_sizes(replicates: int, seed: int) -> Iterator[str]:
    names = ("sign_flip", "paired_bootstrap", "naive")
    errors = " / ".join(f"{sqrt(a * (1 - a) / replicates):.4f}" for a in LEVELS)
    yield (
        f"n = {PROBLEMS}, {SAMPLES} samples, {replicates} studies; share that rejects at nominal "
        f"{' / '.join(f'{a:g}' for a in LEVELS)}; standard error there {errors}"
    )
    yield f"{'null':>20}" + "".join(f"{name:>22}" for name in names)
    for null, chances in NULLS.items():
        bits, rejected = _draws.generator(seed), np.zeros((len(names), len(LEVELS)))
        for _ in range(replicates):
            sort, base = _draws.uniforms(bits, 2, PROBLEMS)
            drawn = _draws.uniforms(bits, 2 * PROBLEMS, SAMPLES).reshape(2, PROBLEMS, SAMPLES)
            right = drawn < np.stack(chances(base, sort))[..., None]
            pairs = Pairs.from_differences((right[1].sum(axis=1) - right[0].sum(axis=1)).tolist(), SAMPLES)
            p = [PROCEDURES[name](pairs, "two-sided") for name in names[:2]] + [naive(right)]
            rejected += [[value <= a for a in LEVELS] for value in p]
        shares = rejected / replicates
        yield f"{null:>20}" + "".join(f"{f'{five:.4f} / {little:.4f}':>22}" for five, little in shares)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for line in exact_sizes():
        print(line)
    print()
    for line in simulated_sizes(options.replicates, options.seed):
        print(line, flush=True)
