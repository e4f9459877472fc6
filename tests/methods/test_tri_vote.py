"""Several chains on a split budget: their schedules under every trigger."""

from fractions import Fraction

import pytest
from cask_methods.presets.tri_vote import TriVote
from cask_methods.presets.triattention import TriAttention

from cask_eval.errors import MethodError
from cask_eval.plan import plan
from cask_eval.schedule import Schedule


def chains_of(budget, **params):
    return TriVote.make("tri_vote", params).schedule(budget).split()


@pytest.mark.parametrize("trigger", ["slack", "periodic"])
def test_budget_and_delta_are_split(trigger):
    parts = chains_of(65, trigger=trigger, delta=17, chains=3)
    assert [(p.budget, p.delta) for p in parts] == [(22, 6), (22, 6), (21, 5)]
    assert {p.trigger for p in parts} == {trigger}


@pytest.mark.parametrize("delta", [1, 2, 128])
def test_at_every_step_only_the_budget_is_split(delta):
    """Every chain is what a method on its share of the budget would be, whatever delta is."""
    parts = chains_of(65, trigger="every_step", delta=delta, chains=3)
    assert parts == [Schedule("every_step", b, 1, "pinned") for b in (22, 22, 21)]
    # 500 tokens, of which the last is never read: 10 + t entries at step t, until an event leaves b after each.
    want = sum(min(10 + t, b + 1) for b in (22, 22, 21) for t in range(1, 500))
    whole = TriVote(trigger="every_step", delta=delta, chains=3).schedule(65)
    assert plan(whole, 10, 500).mean_cache == Fraction(want, 499)


@pytest.mark.parametrize("trigger", ["slack", "periodic", "every_step"])
def test_one_chain_is_triattention(trigger):
    assert TriVote(trigger=trigger, chains=1).schedule(64) == TriAttention(trigger=trigger).schedule(64)


@pytest.mark.parametrize(
    ("budget", "params", "says"),
    [
        (2, {"chains": 3}, "^budget 2 cannot be split over 3 chains; raise it, or lower the parameter chains"),
        (64, {"chains": 3, "delta": 2}, "^delta 2 cannot be split over 3 chains"),
        (1, {"chains": 3, "delta": 2}, "^budget 1 and delta 2 cannot"),
        (2, {"chains": 3, "trigger": "every_step"}, "^budget 2 cannot"),
    ],
)
def test_what_cannot_be_split_is_refused(budget, params, says):
    with pytest.raises(MethodError, match=says):
        TriVote.make("tri_vote", params).schedule(budget)
