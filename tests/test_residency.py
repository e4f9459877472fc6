"""U13: the meter by hand, the closed walk against counting step by step, and the sawtooth figures of the literature."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.residency import PROMPTS, TRIGGERS, Residency, Schedule, walk


def by_hand(schedule, prompt, steps):
    n, total, peak, events = prompt, 0, 0, []
    if schedule.prompt == "compete" and schedule.fires(n, prompt, prompt):
        events.append((0, n, schedule.target(prompt)))
        n = schedule.target(prompt)
    for t in range(1, steps + 1):
        n += 1
        total, peak = total + n, max(peak, n)
        if schedule.fires(n, prompt, prompt + t):
            events.append((t, n, schedule.target(prompt)))
            n = schedule.target(prompt)
    return total, peak, events


def test_ten_steps_by_hand():
    # b = 4, delta = 3, prompt of 3 pinned inside: 4 5 6 7→4 5 6 7→4 5 6 7→4 5
    account = walk(Schedule("slack", 4, 3, "pinned"), 3, 10, layers=2, kv_heads=3, entry_bytes=8)
    assert account.entries == (4 + 5 + 6 + 7 + 5 + 6 + 7 + 5 + 6 + 7) * 6
    assert account.events == [(4, 42, 24), (7, 42, 24), (10, 42, 24)]
    assert account.peak == 7 and account.mean == Fraction(58, 10)
    assert account.payload_bytes == account.entries * 8


@given(
    st.sampled_from(TRIGGERS),
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from(PROMPTS),
    st.integers(1, 60),
    st.integers(0, 150),
)
def test_the_walk_is_the_count(trigger, budget, delta, prompt_policy, prompt, steps):
    schedule = Schedule(trigger, budget, delta, prompt_policy)
    if prompt_policy == "pinned" and prompt >= budget:
        prompt = budget - 1
    if prompt < 1:
        return
    account = walk(schedule, prompt, steps)
    assert (account.entries, account.peak_entries, account.events) == by_hand(schedule, prompt, steps)
    assert account.tally() == (account.entries, account.peak_entries)
    assert steps == 0 or account.peak_entries <= schedule.capacity(prompt, steps + 1)


@pytest.mark.parametrize(
    "schedule, prompt, steps, mean",
    [
        (Schedule("slack", 64, 128, "compete"), 120, 3000, 129),
        (Schedule("every_step", 64, 1, "compete"), 120, 3000, 65),
        (Schedule("slack", 512, 512, "pinned"), 120, 1000, 571),
        (Schedule("slack", 512, 512, "pinned"), 120, 8000, 744),
        (Schedule("slack", 128, 128, "pinned"), 60, 100_000, 192),
    ],
)
def test_nominal_budgets_are_not_mean_caches(schedule, prompt, steps, mean):
    assert abs(walk(schedule, prompt, steps).mean - mean) < Fraction(1, 2)


def test_a_trial_without_decode_steps_counts_with_its_prompt():
    assert walk(Schedule("slack", 8, 4, "pinned"), 5, 0).mean == 5


@pytest.mark.parametrize(
    "events, message",
    [
        ([(5, 99, 4)], "99 entries, but"),
        ([(5, 8, 9)], "leaves 9 of 8"),
        ([(30, 8, 4)], "beyond the last"),
        ([(5, 8, 4), (3, 8, 4)], "out of order"),
    ],
)
def test_an_account_that_contradicts_itself_is_refused(events, message):
    with pytest.raises(ValueError, match=message):
        Residency(1, 1, 8, 3, 20, events).tally()


def test_accounts_survive_storage():
    account = walk(Schedule("slack", 6, 3, "outside"), 4, 30, layers=2, kv_heads=2, entry_bytes=16)
    assert Residency.from_json(account.to_json()) == account


@pytest.mark.parametrize("bad", [dict(trigger="sometimes"), dict(prompt="maybe"), dict(budget=0), dict(delta=0)])
def test_bad_schedules_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Schedule(**{"trigger": "slack", "budget": 4, "delta": 2, "prompt": "pinned", **bad})
