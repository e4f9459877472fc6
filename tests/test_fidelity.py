"""Numbers per trial against loops in exact fractions; malformed arrays are refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.errors import RecordError
from cask_eval.fidelity import AFTER, ENDPOINTS, Tokens, summarise


@st.composite
def tokens(draw):
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    nll, kl = (np.round(rng.exponential(5, shape), draw(st.integers(0, 9))).astype(np.float32) for _ in range(2))
    rank = rng.integers(1, draw(st.integers(2, 9)), shape).astype(np.int32)
    compressed = rng.random(shape) < draw(st.sampled_from([0, 0.5, 1]))
    return Tokens(nll, rank, kl if draw(st.booleans()) else None, compressed)


@given(tokens())
@settings(max_examples=200, deadline=None)
def test_rates_are_exactly_rounded_means(t):
    found = summarise(t)
    cells = [(k, i) for k in range(t.nll.shape[0]) for i in range(t.nll.shape[1])]
    for rates, chosen in ((found.whole, cells), (found.after, [c for c in cells if t.compressed[c]])):
        if not chosen:
            assert rates is None
            continue
        n = len(chosen)
        assert rates.tokens == n
        assert rates.top1 == float(Fraction(sum(t.rank[c] == 1 for c in chosen).item(), n))
        assert rates.top5 == float(Fraction(sum(t.rank[c] <= 5 for c in chosen).item(), n))
        exact = sum(Fraction(float(t.nll[c])) for c in chosen)
        assert rates.nll == float(exact) / n
        assert rates.perplexity == math.exp(rates.nll)
        if t.kl is None:
            assert rates.kl is None
        else:
            assert rates.kl == float(sum(Fraction(float(t.kl[c])) for c in chosen)) / n
    misses = [i for k, i in cells if t.rank[k, i] != 1]
    assert found.first_mismatch == min(misses, default=t.nll.shape[1])
    assert found.strict_prefix_ratio == found.first_mismatch / t.nll.shape[1]
    for name in ENDPOINTS:
        assert found.endpoint(name) == getattr(found.whole, name)
        assert found.endpoint(name + AFTER) == (None if found.after is None else getattr(found.after, name))


def test_an_unknown_endpoint_is_named():
    one = np.ones((1, 1))
    found = summarise(Tokens(one.astype(np.float32), one.astype(np.int32), None, one.astype(np.bool_)))
    with pytest.raises(ValueError, match="'top3' is none of top1"):
        found.endpoint("top3")


@pytest.mark.parametrize(
    "name, value, wrong",
    [
        ("nll", np.full((1, 2), np.nan, np.float32), "not finite"),
        ("kl", np.full((1, 2), -1, np.float32), "negative"),
        ("kl", np.zeros((1, 3), np.float32), "shape"),
        ("rank", np.zeros((1, 2), np.int32), "count from 1"),
        ("rank", np.ones((1, 2), np.int64), "int64"),
        ("compressed", np.zeros((2, 2), np.bool_), "shape"),
    ],
)
def test_malformed_arrays_are_refused(name, value, wrong):
    good = {
        "nll": np.zeros((1, 2), np.float32),
        "rank": np.ones((1, 2), np.int32),
        "kl": np.zeros((1, 2), np.float32),
        "compressed": np.zeros((1, 2), np.bool_),
    }
    Tokens(**good)
    with pytest.raises(RecordError, match=f"{name}: .*{wrong}"):
        Tokens(**{**good, name: value})
