"""Counts against slow simulations that hold real slots: the published TriAttention trigger, CASK's two stages
(cask.md §1.2–1.5) and the other policies; and the events that cask.md names for public runs."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.residency import happenings
from cask_eval.schedule import EXHAUSTED, INACTIVE, OVERFLOWS, PROMPTS, TRIGGERS, Book, Event, Schedule

PROMPT, GENERATED = "prompt", "generated"


def published(budget, delta, prompt, steps, *, count, slack):
    """Published TriAttention, slot by slot: pinned prompt first, then the best generated entries, never more than b."""
    slots, length, reads, events = [PROMPT] * prompt, prompt, [], []
    for step in range(1, steps + 1):
        slots.append(GENERATED)
        length += 1
        reads.append(len(slots))
        effective = len(slots) if count else max(0, len(slots) - prompt)
        if slack:
            fires = effective >= budget + delta
        else:
            fires = effective >= budget and length % delta == 0
        if fires and len(slots) > budget:
            events.append((step, len(slots), budget))
            slots = [*[s for s in slots if s == PROMPT], *[s for s in slots if s == GENERATED]][:budget]
    return reads, events, len(slots)


def cask(budget, delta, window, prompt, steps, *, count, slack):
    """CASK, slot by slot. Returns reads, terminal slots, terminal prefix, prefix events, decode events with the number
    of candidates, guards."""
    slots, prefix, length = list(range(prompt)), prompt, prompt
    reads, prefix_events, decode_events, guards = [], [], [], {}
    for step in range(1, steps + 1):
        slots.append(length)
        length += 1
        reads.append(len(slots))
        effective = len(slots) if count else max(0, len(slots) - prefix)
        due = effective >= budget + delta if slack else effective >= budget and length % delta == 0
        if not due or len(slots) <= budget:
            continue
        if count and prefix > 0:
            generated = len(slots) - prefix
            if generated == 0:
                goal = min(prefix, budget)
            else:
                recent = min(window, generated)
                reserve = 2 if generated > recent else 0
                goal = max(0, min(prefix, budget - min(budget, recent + reserve)))
            if goal < prefix:
                prefix_events.append((step, prefix - goal))
                slots = slots[:goal] + slots[prefix:]
                prefix = goal
        if prefix >= budget:
            guards[EXHAUSTED] = guards.get(EXHAUSTED, 0) + 1
            slots = slots[-budget:]
            prefix = min(prefix, budget)
            continue
        room = budget - prefix
        recent = min(window, len(slots) - prefix)
        if len(slots) - prefix > room and recent >= room:
            recent = max(0, room - 2)
        candidates = slots[prefix : len(slots) - recent]
        free = max(0, room - recent)
        if len(candidates) <= free:
            continue
        if free < 2:
            guards[INACTIVE] = guards.get(INACTIVE, 0) + 1
        else:
            decode_events.append((step, len(candidates)))
        slots = slots[:prefix] + candidates[len(candidates) - free :] + slots[len(slots) - recent :]
    return reads, len(slots), prefix, prefix_events, decode_events, guards


def replayed(schedule, prompt, steps, tokens=()):
    """(reads, resident, prefix, events) of the schedule's own replay."""
    found = happenings(schedule, prompt, steps, tokens)
    reads, resident, prefix = [], prompt, prompt
    after = {step: done for step, _, done in found}
    if 0 in after:
        resident, prefix = after[0].resident, after[0].prefix
    for step in range(1, steps + 1):
        resident += 1
        reads.append(resident)
        if step in after:
            resident, prefix = after[step].resident, after[step].prefix
    return reads, resident, prefix, found


def counters(found):
    guards = {}
    for _, _, done in found:
        if done.guard:
            guards[done.guard] = guards.get(done.guard, 0) + 1
    return sum(d.stage_one for *_, d in found), sum(d.stage_two for *_, d in found), guards


SIZES = dict(
    budget=st.integers(1, 40),
    delta=st.integers(1, 20),
    prompt=st.integers(1, 90),
    steps=st.integers(0, 160),
    count=st.booleans(),
    slack=st.booleans(),
)


@given(**SIZES)
@settings(max_examples=400)
def test_published_triattention(budget, delta, prompt, steps, count, slack):
    schedule = Schedule("slack" if slack else "periodic", budget, delta, "pinned", count, "first")
    reads, resident, prefix, found = replayed(schedule, prompt, steps)
    want = published(budget, delta, prompt, steps, count=count, slack=slack)
    assert (reads, [(t, n, d.resident) for t, n, d in found], resident) == want
    assert prefix == prompt and counters(found) == (0, len(found), {})


@given(window=st.integers(0, 30), **SIZES)
@settings(max_examples=600)
def test_cask(budget, delta, window, prompt, steps, count, slack):
    schedule = Schedule("slack" if slack else "periodic", budget, delta, "two_stage", count, "last", window)
    reads, resident, prefix, found = replayed(schedule, prompt, steps)
    want = cask(budget, delta, window, prompt, steps, count=count, slack=slack)
    assert (reads, resident, prefix) == want[:3]
    assert counters(found) == (len(want[3]), len(want[4]), want[5])
    assert [t for t, _, d in found if d.stage_one] == [t for t, _ in want[3]]
    assert [t for t, _, d in found if d.stage_two] == [t for t, _ in want[4]]


FLAGS = {"shared": dict(count=True, slack=True), "probe": dict(count=False, slack=False)}


@pytest.mark.parametrize("budget", [256, 384])
@pytest.mark.parametrize(
    "task, prompt, output, flags, decode_events",
    [
        ("qasper", 4072, 128, "shared", 0),
        ("multi_news", 2691, 512, "shared", 3),
        ("hotpotqa", 11758, 32, "shared", 0),
        ("musique", 16474, 32, "shared", 0),
        ("2wikimqa", 7379, 32, "shared", 0),
        ("vcsum", 5259, 512, "shared", 3),
        ("qmsum", 10011, 512, "probe", 0),
        ("gov_report", 11040, 512, "probe", 0),
    ],
)
def test_the_prompt_heavy_runs_of_cask(task, prompt, output, flags, decode_events, budget):
    flag = FLAGS[flags]
    schedule = Schedule(
        "slack" if flag["slack"] else "periodic", budget, 128, "two_stage", flag["count"], "last", recent=8
    )
    reads, resident, prefix, found = replayed(schedule, prompt, output - 1)
    one, two, guards = counters(found)
    assert two == decode_events
    if flags == "probe":
        assert (one, guards, prefix) == (0, {EXHAUSTED: 1}, budget)
    else:
        # The first token after the prompt already fires; one event later two slots are free beside the newest 8.
        assert found[0][0] == 1 and found[0][2] == Event(budget, budget - 1, stage_one=True)
        assert guards == {}
        assert prefix == (budget - 10 if decode_events else budget - 1)


@pytest.mark.parametrize("budget", [256, 384])
def test_multi_news_in_full(budget):
    want = cask(budget, 128, 8, 2691, 511, count=True, slack=True)
    assert want[4] == [(129, 121), (257, 130), (385, 130)]  # 381 tokens folded, always into 2 slots
    assert want[3] == [(1, 2691 - budget + 1), (129, 9)]
    schedule = Schedule("slack", budget, 128, "two_stage", overflow="last", recent=8)
    reads, resident, prefix, found = replayed(schedule, 2691, 511)
    assert [t for t, *_ in found] == [1, 129, 257, 385]
    assert (resident, prefix) == (budget + 511 - 385, budget - 10) == want[1:3]
    book = Book(schedule, 2691)
    for step in range(1, 512):
        book.grow()
        if book.due():
            done = book.fire()
            if done.stage_two:
                before, newest = book.schedule.budget + 128, schedule.newest(book.schedule.budget + 128, book.prefix)
                assert newest == 8 and schedule.scratch_slots(before, book.prefix) == 2


def test_a_prompt_beyond_the_budget_is_counted_against_the_published_trigger():
    # Prompt 690, b = 256, every 128 tokens, prompt not counted: 1024 tokens fire, and 256 + 690 entries are not
    # reached again before the end at 1713.
    reads, resident, prefix, found = replayed(Schedule("periodic", 256, 128, "pinned", False, "first"), 690, 1023)
    assert [(t, n, d.resident) for t, n, d in found] == [(334, 1024, 256)]
    assert (resident, prefix) == (256 + 1023 - 334, 690)


def test_ten_steps_by_hand():
    # b = 6, W = 2, delta = 3, prompt of 5 counted. L ≥ 9 first at step 4 with 4 generated: P* = 6 − (2 + 2) = 2, which
    # leaves 2 + 4 = 6. Then every 3 steps: 7 generated, 2 newest, 5 candidates into 2 slots.
    reads, resident, prefix, found = replayed(Schedule("slack", 6, 3, "two_stage", recent=2), 5, 10)
    assert reads == [6, 7, 8, 9, 7, 8, 9, 7, 8, 9]
    assert found == [
        (4, 9, Event(6, 2, stage_one=True)),
        (7, 9, Event(6, 2, stage_two=True)),
        (10, 9, Event(6, 2, stage_two=True)),
    ]
    assert (resident, prefix) == (6, 2)


def test_one_free_slot_is_the_inactive_guard():
    # Prompt of 5 not counted and b = 6: one slot for what is generated, none for a fold.
    *_, found = replayed(Schedule("slack", 6, 2, "two_stage", False, "last", recent=1), 5, 12)
    assert [(t, d.guard, d.prefix) for t, _, d in found] == [(8, INACTIVE, 5)]


# --- the other policies


def plain(schedule, prompt, steps, tokens):
    """A schedule without stages, step by step."""
    target = schedule.budget + (prompt if schedule.prompt == "outside" else 0)

    def fires(n, position, token):
        counted = n - prompt if not schedule.count_prompt else n
        goal = schedule.budget if not schedule.count_prompt else target
        match schedule.trigger:
            case "slack":
                due = counted >= goal + schedule.delta
            case "periodic":
                due = counted >= goal and position % schedule.delta == 0
            case "every_step":
                due = counted >= goal
            case "boundary":
                late = counted >= goal + schedule.delta
                due = late or (counted >= goal + schedule.earliest and token in schedule.boundaries)
            case _:
                due = False
        return due and n > target

    n, reads, events = prompt, [], []
    # The prompt is one step: it does not wait for a period.
    if schedule.prompt == "compete" and fires(n, 0 if schedule.trigger == "periodic" else prompt, None):
        events.append((0, n, target))
        n = target
    for step in range(1, steps + 1):
        n += 1
        reads.append(n)
        if fires(n, prompt + step, tokens[step - 1]):
            events.append((step, n, target))
            n = target
    return reads, n, events


@st.composite
def plain_schedules(draw):
    trigger = draw(st.sampled_from(TRIGGERS))
    delta = draw(st.integers(1, 12))
    return Schedule(
        trigger,
        draw(st.integers(1, 30)),
        delta,
        draw(st.sampled_from(["pinned", "outside", "compete"])),
        draw(st.booleans()),
        "first",
        earliest=draw(st.integers(1, delta)) if trigger == "boundary" else 0,
        boundaries=(1,) if trigger == "boundary" else (),
    )


# Drawn by a generator of their own: lists of 120 numbers would take most of the time.
ANY_TOKENS = st.integers(0, 9999).map(lambda seed: random.Random(seed).choices(range(4), k=120))


@pytest.mark.parametrize("trigger", ["periodic", "every_step"])
@pytest.mark.parametrize("prompt, at_once", [(100, False), (101, True), (127, True), (1000, True)])
def test_a_prompt_that_competes_is_compressed_at_once(trigger, prompt, at_once):
    schedule = Schedule(trigger, 100, 128, "compete")
    assert schedule.compresses_prompt(prompt) == at_once
    assert schedule.capacity(prompt, 2) == (101 if at_once else prompt + 1)


@given(plain_schedules(), st.integers(1, 60), st.integers(0, 120), ANY_TOKENS)
@settings(max_examples=300)
def test_policies_without_stages(schedule, prompt, steps, tokens):
    reads, resident, _, found = replayed(schedule, prompt, steps, tokens)
    want = plain(schedule, prompt, steps, tokens)
    assert (reads, resident, [(t, n, d.resident) for t, n, d in found]) == want


@st.composite
def schedules(draw):
    """Any schedule of one chain."""
    made = draw(plain_schedules())
    return replace(
        made,
        prompt=draw(st.sampled_from(PROMPTS)),
        overflow=draw(st.sampled_from(OVERFLOWS)),
        recent=draw(st.integers(0, 20)),
    )


@given(schedules(), st.integers(1, 60), st.integers(1, 120), ANY_TOKENS)
@settings(max_examples=300)
def test_capacity_is_never_exceeded_and_without_boundaries_reached(schedule, prompt, new_tokens, tokens):
    capacity = schedule.capacity(prompt, new_tokens)
    reads, *_ = replayed(schedule, prompt, new_tokens - 1, tokens)
    assert max(reads, default=0) <= capacity
    if schedule.trigger != "boundary" and reads:
        assert max(reads) == capacity


@given(schedules(), st.integers(1, 60), ANY_TOKENS)
@settings(max_examples=300)
def test_the_book_asked_at_every_step_is_the_replay(schedule, prompt, tokens):
    """`due` at every token, `wait` and `first_chance` ahead of time: all the same events."""
    book, found = Book(schedule, prompt), []
    if schedule.compresses_prompt(prompt):
        found.append((0, book.resident, book.fire()))
    wait, asked = book.wait(), 0
    for step, token in enumerate(tokens, 1):
        chance = schedule.first_chance(book.resident, book.prefix, prompt) if schedule.trigger == "boundary" else None
        book.grow()
        asked += 1
        due = book.due(token)
        if due and asked != wait:  # earlier than forced: only a boundary may do that, and not before its chance
            assert token in schedule.boundaries and chance <= 1
        if asked == wait:
            assert due
        if due:
            before = book.resident
            found.append((step, before, book.fire()))
            wait, asked = book.wait(), 0
    assert found == happenings(schedule, prompt, len(tokens), tokens)


@given(schedules(), st.integers(1, 60))
@settings(max_examples=300)
def test_every_event_shrinks_the_cache_to_its_target(schedule, prompt):
    for _, before, done in happenings(schedule, prompt, 150):
        assert 0 < done.resident < before and 0 <= done.prefix
        assert done.resident <= schedule.target(prompt)
        assert done.stage_two + bool(done.guard) <= 1
        if not done.stage_one:
            assert done.resident == schedule.target(prompt) and done.stage_two != bool(done.guard)


@pytest.mark.parametrize(
    "budget, delta, prompt, steps", [(64, 128, 40, 3000), (64, 128, 63, 50), (128, 128, 60, 2000), (16, 4, 12, 33)]
)
def test_the_sawtooth_in_closed_form(budget, delta, prompt, steps):
    """triattention.md §2: P + t up to the first event, then b + 1 … b + delta."""
    first = max(1, budget + delta - prompt)
    want = [prompt + t if t <= first else budget + 1 + (t - first - 1) % delta for t in range(1, steps + 1)]
    assert replayed(Schedule("slack", budget, delta, "pinned"), prompt, steps)[0] == want


def test_boundaries_by_hand():
    # b = 4, from b + 2 on at token 9, at b + 5 at the latest; prompt of 3.
    schedule = Schedule("boundary", 4, 5, "pinned", earliest=2, boundaries=(9, 7))
    tokens = [9, 0, 9, 9, 7, 0, 0, 0, 0, 0, 0, 7]
    #         4  5  6→4 5 6→4 5 6 7 8 9→4 5 6→4
    reads, resident, _, found = replayed(schedule, 3, 12, tokens)
    assert reads == [4, 5, 6, 5, 6, 5, 6, 7, 8, 9, 5, 6]
    assert [t for t, *_ in found] == [3, 5, 10, 12] and resident == 4


@given(st.integers(1, 30), st.integers(1, 12), st.sampled_from(PROMPTS), st.integers(1, 60), ANY_TOKENS)
def test_equal_bounds_make_a_boundary_the_slack_trigger(budget, delta, prompt_policy, prompt, tokens):
    slack = Schedule("slack", budget, delta, prompt_policy)
    boundary = replace(slack, trigger="boundary", earliest=delta, boundaries=(0, 1, 2, 3))
    assert happenings(boundary, prompt, 120, tokens) == happenings(slack, prompt, 120)
    assert not boundary.content_driven


@given(st.integers(1, 6), st.integers(6, 50), st.integers(6, 30), st.integers(1, 30))
def test_chains_share_everything_out(chains, budget, delta, earliest):
    whole = Schedule("boundary", budget, delta, "pinned", earliest=min(earliest, delta), chains=chains)
    parts = whole.split()
    assert len(parts) == chains and all(p.chains == 1 for p in parts)
    assert (sum(p.budget for p in parts), sum(p.delta for p in parts)) == (budget, delta)
    assert max(p.budget for p in parts) - min(p.budget for p in parts) <= 1
    assert [p.budget for p in parts] == sorted((p.budget for p in parts), reverse=True)
    if whole.earliest == delta:
        assert all(p.earliest == p.delta for p in parts)
    assert replace(whole, chains=1).split() == [replace(whole, chains=1)]


@pytest.mark.parametrize(
    "schedule, driven",
    [
        (Schedule("slack", 8, 4, "pinned"), False),
        (Schedule("slack", 8, 4, "pinned", chains=2), True),
        (Schedule("boundary", 8, 4, "pinned", earliest=4), False),
        (Schedule("boundary", 8, 4, "pinned", earliest=3), True),
    ],
)
def test_what_depends_on_the_text(schedule, driven):
    assert schedule.content_driven is driven


@pytest.mark.parametrize(
    "bad",
    [
        dict(trigger="sometimes"),
        dict(prompt="maybe"),
        dict(overflow="spill"),
        dict(budget=0),
        dict(delta=0),
        dict(recent=-1),
        dict(trigger="boundary", earliest=5),
        dict(trigger="boundary", earliest=0),
        dict(chains=0),
        dict(chains=3),
        dict(budget=3, chains=4),
    ],
    ids=str,
)
def test_bad_schedules_are_refused(bad):
    with pytest.raises(ValueError, match=str(bad[list(bad)[-1]])):
        Schedule(**{"trigger": "slack", "budget": 4, "delta": 2, "prompt": "pinned", **bad})
