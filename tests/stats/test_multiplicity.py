import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.stats.multiplicity import CORRECTIONS, all_of, bonferroni, holm, none

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())["multiplicity"]
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize("name", ["bonferroni", "holm"])
def test_reference_values(name):
    assert CORRECTIONS[name](VECTORS["p"], None) == pytest.approx(VECTORS[name], rel=1e-12)


@pytest.mark.parametrize("name", ["bonferroni", "holm"])
def test_statsmodels_agrees(name):
    from statsmodels.stats.multitest import multipletests

    # Ties, zeros, ones and an order that is neither rising nor falling; few lists, as each call collects garbage.
    for p in ([0.04, 0.001, 0.02, 0.001, 0.3], [1.0, 0.0, 0.5, 0.26], [0.013, 0.012, 0.011, 0.01]):
        assert CORRECTIONS[name](p, None) == pytest.approx(multipletests(p, method=name)[1], rel=1e-12)


def test_an_absent_cell_stays_in_the_family():
    assert bonferroni([0.01, None, 0.02]) == pytest.approx([0.03, 1, 0.06])
    assert holm([0.01, None, 0.02]) == pytest.approx([0.03, 1, 0.04])
    assert none([0.01, None]) == [0.01, 1]


def test_the_family_never_shrinks():
    assert bonferroni([0.01], m=4) == [0.04]
    assert holm([0.01, 0.012], m=4) == pytest.approx([0.04, 0.04])
    for correct in (bonferroni, holm, none):
        with pytest.raises(ValueError, match="family"):
            correct([0.01, 0.02], m=1)


def test_all_of_is_the_weakest_member():
    assert all_of([0.01, 0.04, 0.02]) == 0.04
    assert all_of([0.01, None]) == all_of([0.01], m=2) == 1
    for call in (lambda: all_of([]), lambda: all_of([0.1, 0.2], m=1), lambda: all_of([1.5])):
        with pytest.raises(ValueError):
            call()


@given(p_lists)
def test_order_of_severity(p):
    assert all(a <= h <= b for a, h, b in zip(p, holm(p), bonferroni(p)))


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_values_that_are_no_probability_are_refused(bad):
    with pytest.raises(ValueError, match="p-value"):
        bonferroni([0.5, bad])
