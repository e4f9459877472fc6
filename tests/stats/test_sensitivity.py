from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.pairs import Pairs
from cask_eval.stats.sensitivity import sensitivity

# (right, absent) of two samples
cells = st.sampled_from([(r, a) for r in range(3) for a in range(3 - r)])
studies = st.lists(st.tuples(cells, cells), min_size=1, max_size=4)


def columns(study):
    baseline, candidate = zip(*study)
    return [[cell[i] for cell in arm] for i in (0, 1) for arm in (baseline, candidate)]


def test_by_hand():
    # Problem 2 lost the candidate's trial, problem 3 the baseline's.
    found = sensitivity([0, 1, 0, 1], [1, 0, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0])
    assert found.as_wrong == Pairs.binary(4, 2, 1)
    assert found.complete == Pairs.binary(2, 1, 0)
    assert found.worst == Pairs.binary(4, 1, 1)
    assert found.best == Pairs.binary(4, 2, 0)
    assert found.changed


def test_nothing_is_absent():
    found = sensitivity([0, 1], [1, 1], [0, 0], [0, 0])
    assert found.as_wrong == found.complete == found.worst == found.best == Pairs.binary(2, 1, 0)
    assert not found.changed


def test_no_problem_is_complete():
    assert sensitivity([1], [0], [0], [1]).complete is None


@given(studies)
@settings(max_examples=60, deadline=None)
def test_worst_and_best_are_the_extremes_of_all_completions(study):
    found = sensitivity(*columns(study), samples=2)
    completions = [[(b + i, c + j) for i in range(ba + 1) for j in range(ca + 1)] for (b, ba), (c, ca) in study]
    totals = [sum(c - b for b, c in filled) for filled in product(*completions)]
    assert (found.worst.total, found.best.total) == (min(totals), max(totals))
    assert found.worst.total <= found.as_wrong.total <= found.best.total
    assert found.changed == (len(set(totals)) > 1)


@given(studies)
@settings(max_examples=60, deadline=None)
def test_exchanging_the_arms(study):
    ours, other = sensitivity(*columns(study), samples=2), sensitivity(*columns([s[::-1] for s in study]), samples=2)
    assert (other.worst, other.best, other.as_wrong) == (ours.best.swap(), ours.worst.swap(), ours.as_wrong.swap())


@pytest.mark.parametrize(
    "columns", [([1], [1, 0], [0], [0]), ([2], [1], [0], [0]), ([1], [1], [1], [0]), ([-1], [1], [0], [0]), ([],) * 4]
)
def test_impossible_counts_are_refused(columns):
    with pytest.raises(ValueError):
        sensitivity(*columns)
