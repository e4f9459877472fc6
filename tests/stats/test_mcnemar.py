import json
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.stats.mcnemar import mcnemar_exact, mcnemar_midp
from cask_eval.stats.pairs import Pairs

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())["binary"]
flips = st.tuples(st.integers(0, 40), st.integers(0, 40))


@pytest.mark.parametrize("v", VECTORS, ids=lambda v: f"{v['n']}-{v['w']}-{v['l']}")
def test_reference_values(v):
    pairs = Pairs.binary(v["n"], v["w"], v["l"])
    assert mcnemar_exact(pairs) == pytest.approx(v["mcnemar_exact"], rel=1e-12)
    assert mcnemar_midp(pairs) == pytest.approx(v["midp"], rel=1e-12)


@pytest.mark.parametrize("w, l", [(0, 0), (4, 1), (1, 4), (3, 3), (6, 2), (9, 0)])
def test_equals_enumeration_of_all_signs(w, l):
    d = w + l
    won = [sum(signs) for signs in product((0, 1), repeat=d)]
    at_least = Fraction(sum(x >= w for x in won), 2**d)
    at_most = Fraction(sum(x <= w for x in won), 2**d)
    point = Fraction(won.count(w), 2**d)
    pairs = Pairs.binary(d + 3, w, l)
    assert mcnemar_exact(pairs, "greater") == float(at_least)
    assert mcnemar_exact(pairs, "less") == float(at_most)
    assert mcnemar_exact(pairs) == float(min(1, 2 * min(at_least, at_most)))
    assert mcnemar_midp(pairs, "greater") == float(at_least - point / 2)
    assert mcnemar_midp(pairs, "less") == float(at_most - point / 2)


@pytest.mark.parametrize("w, l", [(18, 7), (1, 7), (30, 10), (150, 86)])
def test_statsmodels_agrees(w, l):
    from statsmodels.stats.contingency_tables import mcnemar

    found = mcnemar([[500, w], [l, 300]], exact=True).pvalue
    assert mcnemar_exact(Pairs.binary(800 + w + l, w, l)) == pytest.approx(found, rel=1e-9)


@given(flips)
def test_exchanging_the_arms(case):
    pairs = Pairs.binary(80, *case)
    for test in (mcnemar_exact, mcnemar_midp):
        assert test(pairs) == test(pairs.swap())
        assert test(pairs, "greater") == test(pairs.swap(), "less")
        assert 0 <= test(pairs) <= 1


@given(flips)
def test_ties_say_nothing_and_midp_is_smaller(case):
    pairs, more = Pairs.binary(80, *case), Pairs.binary(300, *case)
    assert mcnemar_exact(pairs) == mcnemar_exact(more)
    assert mcnemar_midp(pairs) <= mcnemar_exact(pairs)
    assert mcnemar_midp(pairs, "greater") + mcnemar_midp(pairs, "less") == pytest.approx(1)


@given(flips)
def test_one_more_win_is_more_evidence(case):
    w, l = case
    for test in (mcnemar_exact, mcnemar_midp):
        assert test(Pairs.binary(90, w + 1, l), "greater") <= test(Pairs.binary(90, w, l), "greater")


@pytest.mark.parametrize("d", range(30))
def test_exact_never_exceeds_its_level(d):
    p = [mcnemar_exact(Pairs.binary(d + 1, w, d - w)) for w in range(d + 1)]
    for alpha in (0.05, 0.0125):
        assert Fraction(sum(comb(d, w) for w in range(d + 1) if p[w] <= alpha), 2**d) <= alpha


@pytest.mark.parametrize("test", [mcnemar_exact, mcnemar_midp])
def test_several_samples_are_refused(test):
    with pytest.raises(ValueError, match="one sample"):
        test(Pairs.from_differences([2, 0, -1], samples=2))
    with pytest.raises(ValueError, match="alternative"):
        test(Pairs.binary(5, 1, 0), "bigger")
