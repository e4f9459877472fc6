from fractions import Fraction

import pytest

from cask_eval.decide.budgets import replay, solve
from cask_eval.errors import MethodError
from cask_eval.residency import PROMPTS, TRIGGERS, Schedule, walk

LENGTHS = [(120, 3000), (90, 700), (150, 40), (120, 1)]


def slack(b):
    return Schedule("slack", b, 128, "pinned")


def every(b):
    return Schedule("every_step", b, 1, "pinned")


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_replay_equals_walk(trigger, prompt):
    for budget in (1, 5, 8, 20):
        for delta in (1, 3, 8):
            schedule = Schedule(trigger, budget, delta, prompt)
            for p in (1, 4, 9, 30):
                for t in (0, 1, 2, 7, 8, 40, 41):
                    assert replay(schedule, [(p, t)]) == walk(schedule, p, t).mean, (schedule, p, t)


def test_same_schedule_keeps_its_nominal_budget():
    assert solve(slack, LENGTHS, replay(slack(200), LENGTHS), nominal=200) == (200, replay(slack(200), LENGTHS))


def test_every_step_needs_half_the_slack_more():
    lengths = [(100, 20_000)]
    budget, mean = solve(every, lengths, replay(slack(512), lengths), nominal=512)
    assert abs(budget - (512 + 127 / 2)) <= 2
    assert abs(mean / replay(slack(512), lengths) - 1) <= Fraction(1, 100)


@pytest.mark.parametrize("target", [50, 90, 200, 333, 777])
def test_closest_of_all_budgets(target):
    reference = replay(slack(target), LENGTHS)
    budget, mean = solve(every, LENGTHS, reference, nominal=target)
    best = min(abs(replay(every(b), LENGTHS) - reference) for b in range(1, 1200))
    assert abs(mean - reference) == best and mean == replay(every(budget), LENGTHS)


def test_no_budget_within_one_percent_takes_the_largest_below():
    lengths = [(1, 5)] * 3
    reference = Fraction(18, 10)  # budgets 1 and 2 give 2 and more; nothing lies below
    budget, mean = solve(every, lengths, reference, nominal=3)
    assert budget == 1 and mean > reference
    coarse = lambda b: every(10 * b)  # noqa: E731
    reference = replay(every(105), [(1, 500)])
    budget, mean = solve(coarse, [(1, 500)], reference, nominal=10)
    assert budget == 10 and mean < reference and mean / reference < Fraction(99, 100)


def test_a_schedule_that_never_fires_keeps_the_nominal_budget():
    never = lambda b: Schedule("never", b, 1, "pinned")  # noqa: E731
    budget, mean = solve(never, LENGTHS, Fraction(100), nominal=64)
    assert budget == 64 and mean == replay(never(64), LENGTHS)


def test_falling_means_are_refused():
    with pytest.raises(MethodError, match="falls from"):
        solve(lambda b: every(max(1, 4000 - b)), LENGTHS, Fraction(100), nominal=64)


def test_no_lengths_are_refused():
    with pytest.raises(ValueError):
        solve(slack, [], Fraction(1), nominal=1)
