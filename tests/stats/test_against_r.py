"""The same numbers from R, where it is installed."""

import shutil
import subprocess

import pytest

from cask_eval.stats.bootstrap import paired_bootstrap, percentile_interval
from cask_eval.stats.max_t import max_t
from cask_eval.stats.mcnemar import mcnemar_exact
from cask_eval.stats.multiplicity import bonferroni, holm
from cask_eval.stats.off_lattice import sign_flip_reals
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.sign_flip import sign_flip
from cask_eval.stats.t_interval import t_interval, t_test
from cask_eval.stats.tango import tango_interval, tango_test, tango_z

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


def test_score_test_is_the_uncorrected_chi_square():
    statistic, p = r(
        "m <- mcnemar.test(matrix(c(794, 86, 150, 570), 2), correct = FALSE);"
        "cat(format(c(m$statistic, m$p.value), digits = 15))"
    )
    pairs = Pairs.binary(1600, 150, 86)
    assert tango_z(pairs) ** 2 == pytest.approx(statistic, rel=1e-10)
    assert tango_test(pairs) == pytest.approx(p, rel=1e-8)


def test_score_interval_solves_the_constrained_likelihood():
    """The ends, from R: the deviation over its standard error at the rates that R's optimiser finds most likely."""
    low, high = tango_interval(Pairs.binary(100, 18, 7), 0.95)
    found = r(
        "z <- function(delta) { w <- 18; l <- 7; n <- 100;"
        " f <- function(x) w * log(x + delta) + l * log(x) + (n - w - l) * log(1 - 2 * x - delta);"
        " x <- optimize(f, c(max(0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9), maximum = TRUE, tol = 1e-12)$maximum;"
        " (w - l - n * delta) / sqrt(n * (2 * x + delta * (1 - delta))) };"
        f"cat(format(c(z({low}), z({high})), digits = 12))"
    )
    assert found == pytest.approx([1.959964, -1.959964], abs=1e-5)


def test_sign_flip_by_walking_through_all_patterns():
    values = [0.5, -0.25, 0.75, 0, 1, 0.25, -0.5, 0.5, 0.25, 0.75, 0, 0.5]
    (p,) = r(
        f"d <- c({', '.join(map(str, values))}); s <- as.matrix(expand.grid(rep(list(c(-1, 1)), length(d)))) %*% d;"
        "cat(format(mean(abs(s) >= abs(sum(d))), digits = 15))"
    )
    assert sign_flip(Pairs.from_differences([round(4 * v) for v in values], 4)) == p
    assert sign_flip_reals(values) == (p, True)


def test_t_interval():
    values = [0.31, -0.12, 0.55, 0.2, 0.07, -0.3, 0.41]
    p, low, high = r(
        f"t <- t.test(c({', '.join(map(str, values))}), conf.level = 0.9);"
        "cat(format(c(t$p.value, t$conf.int), digits = 15))"
    )
    assert t_test(values) == pytest.approx(p, rel=1e-10)
    assert t_interval(values, 0.9) == pytest.approx((low, high), rel=1e-10)


def test_corrections():
    p = [0.012, 0.001, 0.3, 0.02, 0.012]
    given = f"c({', '.join(map(str, p))})"
    assert holm(p) == pytest.approx(r(f"cat(format(p.adjust({given}, 'holm'), digits = 15))"), rel=1e-12)
    assert bonferroni(p) == pytest.approx(r(f"cat(format(p.adjust({given}, 'bonferroni'), digits = 15))"), rel=1e-12)


def test_single_step_max_t_by_walking_through_all_patterns():
    cells = [[1, 1, 0, 1, -1, 1, 1, 0], [1, 0, 1, 1, 1, 1, -1, 1]]
    found = r(
        f"d <- rbind(c({', '.join(map(str, cells[0]))}), c({', '.join(map(str, cells[1]))}));"
        "s <- as.matrix(expand.grid(rep(list(c(-1, 1)), 8))) %*% t(d); t2 <- t(t(s^2) / rowSums(d^2));"
        "o <- rowSums(d)^2 / rowSums(d^2); m <- pmax(t2[, 1], t2[, 2]);"
        "cat(format(c(mean(m >= o[1] - 1e-9), mean(m >= o[2] - 1e-9)), digits = 15))"
    )
    assert max_t(cells).single_step == pytest.approx(found, rel=1e-12)
