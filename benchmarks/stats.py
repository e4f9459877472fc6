"""What the exact statistics of one cell cost, beside the usual ways.

    python benchmarks/stats.py [--repeat 5]

One cell of n = 500 problems, w = 40, l = 20, in one run. Every figure is the least of --repeat runs after one that does
not count; ours are called with their caches emptied, many times in a row, and divided by the number of calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar

from cask_eval.stats import _binomial, sign_flip, tango
from cask_eval.stats import bootstrap as ours
from cask_eval.stats.max_t import max_t
from cask_eval.stats.mcnemar import mcnemar_exact
from cask_eval.stats.pairs import Pairs

N, WINS, LOSSES = 500, 40, 20
REPLICATES = 100_000
TARGET = 1000


def least(run: Callable[[], object], repeat: int, calls: int = 1) -> float:
    """Seconds of one call."""
    best = float("inf")
    for turn in range(repeat + 1):
        began = time.perf_counter()
        for _ in range(calls):
            run()
        if turn:
            best = min(best, (time.perf_counter() - began) / calls)
    return best


def uncached(run: Callable[[], object]) -> Callable[[], object]:
    def call():
        for cached in (ours.resampled, _binomial.subsets_up_to, sign_flip._packed, tango._upper):
            cached.cache_clear()
        return run()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat

    pairs = Pairs.binary(N, WINS, LOSSES)
    differences = np.repeat([1, 0, -1], [WINS, N - WINS - LOSSES, LOSSES])
    rng = np.random.default_rng(1)
    eight = Pairs.from_differences(rng.binomial(8, 0.55, N) - rng.binomial(8, 0.5, N), 8)
    cells = rng.integers(-1, 2, (18, N))

    def scipy_bootstrap():
        return bootstrap((differences,), np.mean, n_resamples=REPLICATES, method="percentile", batch=2000)

    def trinomial_draws():
        drawn = rng.multinomial(N, [WINS / N, 1 - (WINS + LOSSES) / N, LOSSES / N], REPLICATES)
        return (drawn @ np.array([1, 0, -1]) <= 0).mean()

    def exact():
        return ours.paired_bootstrap(pairs), ours.percentile_interval(pairs, 0.95)

    table = [[300, WINS], [LOSSES, N - 300 - WINS - LOSSES]]
    rows = [
        ("paired bootstrap: scipy.stats.bootstrap, B = 100,000, p or interval", least(scipy_bootstrap, repeat)),
        ("paired bootstrap: trinomial draws, B = 100,000, p", least(trinomial_draws, repeat)),
        ("paired bootstrap: exact, p and interval", least(uncached(exact), repeat, 500)),
        ("McNemar: statsmodels, exact", least(lambda: mcnemar(table, exact=True), repeat, 200)),
        ("McNemar: exact", least(uncached(lambda: mcnemar_exact(pairs)), repeat, 500)),
        ("sign flip: exact", least(uncached(lambda: sign_flip.sign_flip(pairs)), repeat, 500)),
        ("Tango score interval", least(uncached(lambda: tango.tango_interval(pairs, 0.95)), repeat, 500)),
        ("8 samples, paired bootstrap: exact, p", least(uncached(lambda: ours.paired_bootstrap(eight)), repeat, 20)),
        ("8 samples, sign flip: exact", least(uncached(lambda: sign_flip.sign_flip(eight)), repeat, 20)),
        ("max-T over 18 cells, B = 9,999", least(lambda: max_t(cells), repeat)),
    ]
    for name, seconds in rows:
        print(f"{name:70}{1000 * seconds:12.4f} ms")
    seconds = dict(rows)
    ratio = rows[0][1] / rows[2][1]
    verdict = "met" if ratio >= TARGET else "missed"
    print(f"\nexact bootstrap: {ratio:,.0f} × scipy.stats.bootstrap (target {TARGET:,}: {verdict})")
    print(f"exact bootstrap: {rows[1][1] / rows[2][1]:,.0f} × trinomial draws")
    print(f"exact McNemar: {seconds['McNemar: statsmodels, exact'] / seconds['McNemar: exact']:,.1f} × statsmodels")


if __name__ == "__main__":
    main()
