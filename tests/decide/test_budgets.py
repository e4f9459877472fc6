import random
import time
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.decide.budgets import (
    EVALUATIONS,
    TOLERANCE,
    entries,
    footprint_of,
    matched_choice,
    reference_choice,
    replay,
    schedule_of,
    search,
    search_fault,
    searched_choice,
    solve,
)
from cask_eval.errors import MethodError
from cask_eval.footprint import Footprint, Packing
from cask_eval.ledger.events import Evaluation
from cask_eval.residency import expected, walk
from cask_eval.schedule import OVERFLOWS, PROMPTS, TRIGGERS, Schedule

LENGTHS = [(120, 3000), (90, 700), (150, 40), (120, 1)]
PLAIN = Footprint(4, 8, 2)
QUERIES = replace(PLAIN, fixed_bytes=28 * 4 * 32)  # as much as 28 entries per head


def slack(b):
    return Schedule("slack", b, 128, "pinned")


def every(b):
    return Schedule("every_step", b, 1, "pinned")


@st.composite
def schedules(draw):
    trigger, delta = draw(st.sampled_from(TRIGGERS)), draw(st.integers(1, 12))
    return Schedule(
        trigger,
        draw(st.integers(1, 30)),
        delta,
        draw(st.sampled_from(PROMPTS)),
        draw(st.booleans()),
        draw(st.sampled_from(OVERFLOWS)),
        draw(st.integers(0, 12)),
        draw(st.integers(1, delta)) if trigger == "boundary" else 0,
    )


@st.composite
def footprints(draw):
    packing = draw(st.sampled_from([None, Packing(2, 2, 6), Packing(4, 4, 4)]))
    return Footprint(4, 8, 2, packing, draw(st.sampled_from([0, 4])), draw(st.sampled_from([0, 3])), 100)


@given(schedules(), footprints(), st.lists(st.tuples(st.integers(1, 60), st.integers(0, 150)), min_size=1, max_size=4))
@settings(max_examples=300)
def test_replay_is_the_mean_of_the_walks(schedule, footprint, lengths):
    walks = [walk(schedule, footprint, p, t, 2).mean for p, t in lengths]
    assert replay(schedule, footprint, lengths) == sum(walks) / len(walks)


@pytest.mark.parametrize("chains", [2, 3])
def test_replay_takes_every_chain_for_as_long_as_the_trial(chains):
    schedule = Schedule("slack", 40, 16, "pinned", chains=chains)
    for prompt, steps in [(9, 0), (9, 1), (30, 200)]:
        account = expected(schedule, QUERIES, prompt, [[0] * (steps + 1)] * chains, 2)
        assert replay(schedule, QUERIES, [(prompt, steps)]) == account.mean


def test_same_schedule_keeps_its_nominal_budget():
    reference = replay(slack(200), PLAIN, LENGTHS)
    assert solve(slack(200), PLAIN, LENGTHS, reference) == (200, reference)


def test_every_step_needs_half_the_slack_more():
    lengths = [(100, 20_000)]
    reference = replay(slack(512), PLAIN, lengths)
    budget, mean = solve(every(512), PLAIN, lengths, reference)
    assert abs(budget - (512 + 127 / 2)) <= 2
    assert abs(mean / reference - 1) <= TOLERANCE


def test_remembered_queries_are_paid_for():
    lengths = [(100, 20_000)]
    reference = replay(slack(512), PLAIN, lengths)
    assert abs(solve(slack(512), QUERIES, lengths, reference)[0] - (512 - 28)) <= 1


def test_packed_entries_are_cheaper():
    """At 2 bits with groups of 32 a packed entry weighs 3/16 of a full one."""
    wide = Footprint(4, 32, 2)
    packed = replace(wide, packing=Packing(2, 32, 32))
    lengths = [(100, 20_000)]
    reference = replay(slack(256), wide, lengths)
    budget, mean = solve(slack(256), packed, lengths, reference)
    assert budget > 4 * 256 and abs(mean / reference - 1) <= TOLERANCE


@pytest.mark.parametrize("target", [50, 90, 200, 333, 777])
@pytest.mark.parametrize(
    "schedule, footprint",
    [
        (every(64), PLAIN),
        (slack(64), QUERIES),
        (Schedule("periodic", 64, 128, "pinned", False, "first"), PLAIN),
        (Schedule("slack", 64, 32, "two_stage", True, "last", 8), PLAIN),
        (Schedule("periodic", 64, 32, "two_stage", False, "last", 8), PLAIN),
        (Schedule("boundary", 64, 128, "compete", earliest=32), PLAIN),
        (Schedule("slack", 64, 32, "compete", chains=3), PLAIN),
    ],
)
def test_closest_of_all_budgets(target, schedule, footprint):
    reference = replay(every(target), PLAIN, LENGTHS)
    budget, mean = solve(schedule, footprint, LENGTHS, reference)
    means = {b: replay(replace(schedule, budget=b), footprint, LENGTHS) for b in range(schedule.chains, 1400)}
    best = min(means.values(), key=lambda m: abs(m - reference))
    if abs(best / reference - 1) > TOLERANCE:
        best = max((m for m in means.values() if m <= reference), default=means[schedule.chains])
    assert mean == best == means[budget]


def test_no_budget_within_one_percent_takes_the_largest_below():
    # Every entry of a trait of 2560 bytes weighs 20 full ones: means come in steps of 21.
    heavy = replace(PLAIN, trait_bytes=20 * 32)
    lengths = [(1, 500)]
    reference = Fraction(262)
    budget, mean = solve(every(10), heavy, lengths, reference)
    assert mean < Fraction(99, 100) * reference and replay(every(budget + 1), heavy, lengths) > reference


def test_when_every_budget_holds_too_much_it_is_the_smallest():
    reference = Fraction(18, 10)  # budgets 1 and 2 give 2 and more
    budget, mean = solve(every(3), PLAIN, [(1, 5)] * 3, reference)
    assert budget == 1 and mean > reference


def test_a_schedule_that_never_fires_keeps_the_nominal_budget():
    never = Schedule("never", 64, 1, "pinned")
    for footprint in (PLAIN, QUERIES):
        assert solve(never, footprint, LENGTHS, Fraction(10)) == (64, replay(never, footprint, LENGTHS))


def test_state_that_exceeds_the_reference_is_refused():
    with pytest.raises(MethodError) as error:
        solve(slack(64), QUERIES, LENGTHS, Fraction(28))
    assert "3584 bytes per sequence" in str(error.value) and "28.0" in str(error.value)
    assert solve(slack(64), QUERIES, LENGTHS, Fraction(281, 10))[0] == 1
    with pytest.raises(MethodError, match="and 256 bytes per cached token"):
        solve(slack(64), replace(PLAIN, trait_bytes=64), LENGTHS, Fraction(70))


def test_falling_means_are_refused(monkeypatch):
    monkeypatch.setattr(Schedule, "target", lambda self, prompt: max(1, 4000 - self.budget))
    with pytest.raises(MethodError, match="falls from"):
        solve(every(64), PLAIN, LENGTHS, Fraction(100))


@pytest.mark.parametrize("lengths, reference", [([], Fraction(1)), ([(1, 1)], Fraction(0))])
def test_nothing_to_match_is_refused(lengths, reference):
    with pytest.raises(ValueError):
        solve(slack(1), PLAIN, lengths, reference)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("slack", 512, 128, "two_stage", True, "last", 128),
        Schedule("periodic", 512, 128, "pinned", False, "first"),
        Schedule("every_step", 512, 1, "two_stage", True, "last", 128),
    ],
    ids=lambda s: f"{s.trigger} {s.prompt}",
)
def test_five_hundred_problems_are_solved_in_a_second(schedule):
    lengths = [(100 + 7 * i % 400, 500 + 137 * i % 7600) for i in range(500)]
    reference = replay(slack(512), PLAIN, lengths)
    start = time.process_time()
    solve(schedule, QUERIES, lengths, reference)
    assert time.process_time() - start < 1


# --- the search


def run_search(mean_at, reference, seed, low=1):
    """Every (budget, mean) that the search asks for, and its final budget."""
    evaluated = []
    while True:
        budget, final = search(evaluated, reference, seed, low)
        if final:
            return evaluated, budget
        assert budget not in dict(evaluated) and budget >= low and len(evaluated) < EVALUATIONS
        evaluated.append((budget, Fraction(mean_at(budget))))


def test_a_good_seed_ends_at_once():
    assert run_search(lambda b: b + 60, Fraction(160), 100) == ([(100, 160)], 100)
    assert run_search(lambda b: b + 61, Fraction(160), 100) == ([(100, 161)], 100)


def test_one_entry_a_budget_entry_first_then_the_secant():
    # mean = 2b + 30: from 100 to 100 − 70 = 30 by slope 1, then straight to the solution by the measured slope.
    assert run_search(lambda b: 2 * b + 30, Fraction(160), 100) == ([(100, 230), (50, 130), (65, 160)], 65)


def test_means_that_do_not_grow_are_followed_with_slope_one():
    evaluated, final = run_search(lambda b: 100, Fraction(200), 50)
    assert [b for b, _ in evaluated] == [50, 100, 200, 300] and final == 50


def test_of_two_equally_close_budgets_the_smaller():
    assert search(
        [(20, Fraction(110)), (10, Fraction(90)), (11, Fraction(80)), (5, Fraction(70))], Fraction(100), 9
    ) == (10, True)


def test_neighbours_end_the_search():
    assert search([(10, Fraction(90)), (11, Fraction(105))], Fraction(100), 10) == (11, True)


def test_never_below_the_smallest_budget():
    evaluated, final = run_search(lambda b: b + 500, Fraction(100), 2, low=4)
    assert [b for b, _ in evaluated] == [4] and final == 4


@given(
    st.integers(1, 400),
    st.integers(1, 4),
    st.fractions(Fraction(1, 5), 3),
    st.integers(0, 200),
    st.integers(0, 40),
    st.integers(20, 800),
)
def test_any_search_ends_at_the_best_it_has_seen(seed, low, slope, base, noise, reference):
    def mean_at(b):
        return max(Fraction(1), slope * b + base + random.Random(b).randint(-noise, noise))

    evaluated, final = run_search(mean_at, Fraction(reference), seed, low)
    assert 1 <= len(evaluated) <= EVALUATIONS
    assert abs(dict(evaluated)[final] - reference) == min(abs(m - reference) for _, m in evaluated)
    assert (evaluated, final) == run_search(mean_at, Fraction(reference), seed, low)
    if len(evaluated) > 1:
        assert all(abs(m / reference - 1) > TOLERANCE for _, m in evaluated[:-1])


@given(st.integers(40, 400), st.fractions(Fraction(1, 2), 2), st.integers(0, 60), st.integers(100, 500))
@settings(max_examples=100)
def test_a_straight_line_is_solved(seed, slope, base, reference):
    solution = (reference - base) / slope
    _, final = run_search(lambda b: slope * b + base, Fraction(reference), seed)
    if seed / 2 <= solution <= 2 * seed:
        error = abs(slope * final + base - reference)
        assert error <= max(slope, reference * TOLERANCE)


# --- frozen choices


def draft(schedule=Schedule("boundary", 64, 32, "pinned", earliest=8, boundaries=(3, 9)), footprint=QUERIES):
    return matched_choice("tri", {"delta": 32}, schedule, footprint, LENGTHS, replay(slack(64), PLAIN, LENGTHS))


def test_choices_hold_the_whole_schedule_and_footprint():
    packed = replace(QUERIES, packing=Packing(2, 4, 8), shared_bytes=3)
    schedule = Schedule("periodic", 64, 32, "two_stage", False, "last", 5, chains=2)
    choice = matched_choice("tri", {}, schedule, packed, LENGTHS, Fraction(150))
    assert schedule_of(choice) == replace(schedule, budget=choice.schedule.budget)
    assert footprint_of(choice) == packed
    choice = reference_choice("tri", {}, schedule, packed, Fraction(10, 3))
    assert schedule_of(choice) == schedule and footprint_of(choice) == packed
    assert choice.dev_mean == choice.reference_mean == "3333333333/1000000000"


def test_means_are_stated_shortly():
    assert entries(Fraction(3, 2)) == "3/2"
    assert entries(Fraction(10**5000 + 1, 10**5000)) == "1/1"


def test_a_searched_choice():
    start, ran = draft(), []

    def evaluate(choice):
        assert schedule_of(choice) == replace(schedule_of(start), budget=choice.schedule.budget)
        ran.append(choice.schedule.budget)
        return Fraction(choice.schedule.budget * 2 + 60, 3)

    found = searched_choice(start, evaluate)
    assert ran[0] == start.schedule.budget and ran == [s.budget for s in found.searched]
    assert 1 < len(ran) <= EVALUATIONS and found.schedule.budget == ran[-1]
    assert found.dev_mean == entries(Fraction(ran[-1] * 2 + 60, 3)) == found.searched[-1].dev_mean
    assert search_fault(start, found) is None
    assert searched_choice(start, evaluate) == found


def test_what_follows_from_lengths_is_not_searched():
    start = draft(slack(64))
    assert searched_choice(start, lambda choice: pytest.fail("nothing is to be run")) is start
    assert search_fault(start, start) is None


@pytest.mark.parametrize(
    "forge",
    [
        lambda c: c.model_copy(update={"searched": []}),
        lambda c: c.model_copy(update={"searched": c.searched[:-1]}),
        lambda c: c.model_copy(update={"searched": [*c.searched, c.searched[-1]]}),
        lambda c: c.model_copy(update={"searched": c.searched[1:]}),
        lambda c: c.model_copy(update={"schedule": c.schedule.model_copy(update={"budget": c.searched[0].budget})}),
        lambda c: c.model_copy(update={"dev_mean": c.searched[0].dev_mean}),
        lambda c: c.model_copy(
            update={"searched": [c.searched[0], Evaluation(budget=c.searched[1].budget, dev_mean="1/1")]}
        ),
        lambda c: c.model_copy(update={"footprint": c.footprint.model_copy(update={"fixed_bytes": 0})}),
        lambda c: c.model_copy(update={"reference_mean": "150/1"}),
    ],
    ids=["none", "cut", "longer", "no seed", "first", "mean of the first", "mean edited", "footprint", "reference"],
)  # fmt: skip
def test_a_search_that_did_not_happen_so_is_found(forge):
    start = draft()
    found = searched_choice(start, lambda choice: Fraction(choice.schedule.budget * 2 + 60, 3))
    assert search_fault(start, forge(found))


def test_packed_means_that_dip_are_solved_and_the_closest_is_found():
    """Near the longest trial a larger budget can hold fewer bytes, because one more block of keys gets packed."""
    footprint = Footprint(4, 32, 4, Packing(8, 32, 32))
    lengths = [(35, t) for t in range(220, 260)]
    schedule = Schedule("slack", 96, 16, "pinned")
    means = {b: replay(replace(schedule, budget=b), footprint, lengths) for b in range(40, 300)}
    assert any(means[b] > means[b + 1] for b in range(40, 299))
    for target in (Fraction(60), Fraction(75), max(means.values()) + 5):
        budget, mean = solve(schedule, footprint, lengths, target)
        assert mean == means[budget]
        if target < max(means.values()):
            assert abs(mean - target) == min(abs(m - target) for m in means.values())
