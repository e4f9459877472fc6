"""Counts of one trial against a walk token by token, and against the bytes of a packed cache."""

from hypothesis import given
from hypothesis import strategies as st

from cask_eval.footprint import Footprint, Packing
from cask_eval.occupancy import compressed_from, terminal
from cask_eval.schedule import OVERFLOWS, PROMPTS, TRIGGERS, Book, Schedule

FULL = Footprint(4, 32, 4)

schedules = st.builds(
    Schedule,
    st.sampled_from(TRIGGERS),
    st.integers(4, 20),
    st.integers(3, 8),
    st.sampled_from(PROMPTS),
    st.booleans(),
    st.sampled_from(OVERFLOWS),
    st.integers(0, 5),
    st.integers(1, 3),
    st.just((7,)),
    st.integers(1, 3),
)


def walked(schedule, prompt, ids):
    """(entries in the end, first token predicted from a compressed cache), one token at a time."""
    book, first = Book(schedule, prompt), len(ids)
    if schedule.compresses_prompt(prompt):
        book.fire()
        first = min(first, 1)
    for step, token in enumerate(ids[:-1], 1):
        book.grow()
        if book.due(token):
            book.fire()
            first = min(first, step + 1)
    return book.resident, first


@given(schedules, st.integers(1, 40), st.lists(st.integers(0, 9), min_size=4, max_size=80))
def test_counts_are_those_of_a_walk(schedule, prompt, ids):
    outputs = [ids[i:] for i in range(schedule.chains)]
    walks = [walked(part, prompt, out) for part, out in zip(schedule.split(), outputs, strict=True)]
    assert terminal(schedule, prompt, outputs) == sum(resident for resident, _ in walks)
    for part, out, (_, first) in zip(schedule.split(), outputs, walks, strict=True):
        assert compressed_from(part, FULL, prompt, out) == first


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 3))
def test_a_packed_cache_is_felt_by_the_first_step_that_reads_packed_entries(prompt, length, blocks):
    footprint, schedule = Footprint(4, 32, 4, Packing(2, 8, 8 * blocks)), Schedule("never", 1, 1, "pinned")
    packed = [t for t in range(1, length) if footprint.payload(prompt + t) < FULL.payload(prompt + t)]
    assert compressed_from(schedule, footprint, prompt, [0] * length) == min(packed, default=length)
