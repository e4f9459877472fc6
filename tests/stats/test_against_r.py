"""The same numbers from R, where it is installed."""

import shutil
import subprocess

import pytest

from cask_eval.stats.bootstrap import paired_bootstrap, percentile_interval
from cask_eval.stats.mcnemar import mcnemar_exact
from cask_eval.stats.pairs import Pairs

R = shutil.which("Rscript")
pytestmark = pytest.mark.skipif(R is None, reason="R is not installed")


def r(code: str) -> list[float]:
    done = subprocess.run([R, "--vanilla", "-e", code], capture_output=True, text=True, timeout=60)
    if "there is no package" in done.stderr:
        pytest.skip("R's boot package is not installed")
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_exact_mcnemar_is_a_binomial_test():
    assert mcnemar_exact(Pairs.binary(100, 18, 7)) == pytest.approx(
        r("cat(format(binom.test(18, 25)$p.value, digits = 15))")[0], rel=1e-12
    )


def test_exact_mcnemar_is_close_to_the_corrected_chi_square():
    p = r("cat(format(mcnemar.test(matrix(c(794, 86, 150, 570), 2))$p.value, digits = 15))")[0]
    assert mcnemar_exact(Pairs.binary(1600, 150, 86)) == pytest.approx(p, rel=0.1)


def test_boot():
    share, low, high = r(
        "library(boot); set.seed(1); d <- rep(c(1, 0, -1), c(18, 75, 7));"
        "b <- boot(d, function(x, i) sum(x[i]), R = 19999); q <- boot.ci(b, type = 'perc')$percent;"
        "cat(mean(b$t <= 0), q[4], q[5])"
    )
    pairs = Pairs.binary(100, 18, 7)
    assert share == pytest.approx(paired_bootstrap(pairs, "greater"), abs=0.004)
    assert [low / 100, high / 100] == pytest.approx([float(v) for v in percentile_interval(pairs, 0.95)], abs=0.0101)
