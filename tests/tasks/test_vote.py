"""Self-consistency: which chain speaks for a trial."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.tasks.vote import vote


def test_one_chain_is_itself():
    assert vote(["7"]) == vote([None]) == 0


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], 1),
        (["1", "2"], 0),
        (["1", "2", "2", "1"], 0),
        ([None, "2", None], 1),
        ([None, None], 0),
        ([None, "3", "4", "4"], 2),
    ],
)
def test_largest_class_earliest_chain_abstentions(answers, winner):
    assert vote(answers) == winner


def test_classes_are_of_equal_answers_not_of_equal_texts():
    assert vote(["1/2", "3", "0.5"], lambda a, b: eval(a) == eval(b)) == 0
    assert vote(["3", "1/2", "0.5"], lambda a, b: eval(a) == eval(b)) == 1


def test_no_chain_is_refused():
    with pytest.raises(ValueError, match="at least one chain"):
        vote([])


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=6))
def test_the_order_of_chains_matters_only_through_ties(answers):
    counts = Counter(a for a in answers if a is not None)
    top = [a for a, n in counts.items() if n == max(counts.values())]
    winners = {p[vote(p)] for p in itertools.permutations(answers)}
    assert winners == (set(top) if counts else {None})
