from math import sqrt

import numpy as np
import pytest

from cask_eval.stats.t_interval import standard_error, t_interval, t_test

RNG = np.random.default_rng(5)
VALUES = RNG.normal(0.2, 1, 40).tolist()
GROUPS = [f"text {i}" for i in RNG.integers(0, 9, 40)]


def test_scipy_agrees():
    from scipy.stats import sem, ttest_1samp

    found = ttest_1samp(VALUES, 0)
    assert standard_error(VALUES) == pytest.approx(sem(VALUES), rel=1e-12)
    assert t_test(VALUES) == pytest.approx(found.pvalue, rel=1e-10)
    interval = found.confidence_interval(0.9)
    assert t_interval(VALUES, 0.9) == pytest.approx((interval.low, interval.high), rel=1e-10)
    for alternative in ("greater", "less"):
        want = ttest_1samp(VALUES, 0, alternative=alternative).pvalue
        assert t_test(VALUES, alternative) == pytest.approx(want, rel=1e-10)


def test_statsmodels_agrees_on_clusters():
    import statsmodels.api as sm

    fit = sm.OLS(VALUES, np.ones(len(VALUES))).fit(
        cov_type="cluster", cov_kwds={"groups": np.unique(GROUPS, return_inverse=True)[1]}, use_t=True
    )
    assert standard_error(VALUES, GROUPS) == pytest.approx(fit.bse[0], rel=1e-10)
    assert t_test(VALUES, clusters=GROUPS) == pytest.approx(fit.pvalues[0], rel=1e-9)
    assert t_interval(VALUES, 0.95, GROUPS) == pytest.approx(tuple(fit.conf_int(0.05)[0]), rel=1e-9)


def test_clustered_error_by_its_double_sum():
    """Miller 2024: the variance plus the covariance of every two items of one cluster, over n²; then G/(G − 1)."""
    centred, n = np.array(VALUES) - np.mean(VALUES), len(VALUES)
    together = sum(
        centred[i] * centred[j] for i in range(n) for j in range(n) if i != j and GROUPS[i] == GROUPS[j]
    )  # fmt: skip
    clusters = len(set(GROUPS))
    want = sqrt((centred @ centred / n**2 + together / n**2) * clusters / (clusters - 1))
    assert standard_error(VALUES, GROUPS) == pytest.approx(want, rel=1e-12)


def test_clusters_of_one_change_nothing():
    assert t_interval(VALUES, 0.9, list(range(40))) == t_interval(VALUES, 0.9)


def test_copies_in_a_cluster_are_one_observation():
    copied, groups = [v for v in VALUES for _ in range(3)], [i for i in range(40) for _ in range(3)]
    assert standard_error(copied, groups) == pytest.approx(standard_error(VALUES), rel=1e-12)
    assert standard_error(copied) < standard_error(VALUES) / 1.6


def test_constant_differences():
    assert t_test([0.0, 0.0, 0.0]) == 1
    assert t_test([1.0, 1.0, 1.0]) == 0
    assert t_test([1.0, 1.0, 1.0], "less") == 1
    assert t_interval([1.0, 1.0], 0.9) == (1, 1)


def test_exchanging_the_arms():
    other = [-v for v in VALUES]
    low, high = t_interval(VALUES, 0.9)
    assert t_interval(other, 0.9) == (-high, -low)
    assert t_test(other, "less") == t_test(VALUES, "greater")


@pytest.mark.parametrize(
    "call",
    [
        lambda: standard_error([1.0]),
        lambda: standard_error([1.0, 2.0], ["a", "a"]),
        lambda: standard_error([1.0, float("nan")]),
        lambda: standard_error([1.0, 2.0], ["a"]),
        lambda: t_interval([1.0, 2.0], 0),
        lambda: t_test([1.0, 2.0], "bigger"),
    ],
    ids=["one", "one cluster", "nan", "length", "level", "alternative"],
)
def test_refusals(call):
    with pytest.raises(ValueError):
        call()
