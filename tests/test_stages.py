"""Stages and regimes: by hand, against the published probes, and the same from a plan, a schedule and a record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.canonical import ZERO
from cask_eval.footprint import Footprint
from cask_eval.plan import plan
from cask_eval.records.model import GradeRecord, Record, ResidencyRecord, StagesRecord
from cask_eval.records.store import line_of, parse
from cask_eval.residency import expected
from cask_eval.schedule import EXHAUSTED, Schedule
from cask_eval.stages import Stages, regime, stages


def ids(n):
    return [list(range(n))]


@pytest.mark.parametrize(
    "schedule, prompt, output, found, label",
    [
        # CASK counting its prompt: the prompt gives way at the first decode step, later events fold.
        (Schedule("slack", 256, 128, "two_stage", True, "last", 8), 2691, 512, Stages(2, 3, 0, {}), "active"),
        # Not counting it: the last b entries are kept and count as prompt (cask.md §1.5).
        (
            Schedule("periodic", 256, 128, "two_stage", False, "last", 8),
            10011,
            512,
            Stages(0, 0, 1, {EXHAUSTED: 1}),
            "prefix_budget_exhausted",
        ),
        # The published baseline keeps the prompt's first b entries and names no guard.
        (
            Schedule("slack", 256, 128, "pinned", True, "first"),
            2691,
            512,
            Stages(0, 4, 4, {}),
            "prefix_budget_exhausted",
        ),
        # A prompt that competes may be longer than the budget: that is compression of the prompt, not exhaustion.
        (Schedule("slack", 256, 128, "compete"), 2691, 200, Stages(0, 2, 0, {}), "active"),
        (Schedule("slack", 256, 128, "outside"), 2691, 400, Stages(0, 1, 0, {}), "active"),
        (Schedule("slack", 256, 128, "outside"), 2691, 100, Stages(), "never_compressed"),
        (Schedule("never", 1, 1, "outside"), 2691, 100, Stages(), "never_compressed"),
    ],
)
def test_by_hand(schedule, prompt, output, found, label):
    assert stages(schedule, prompt, ids(output)) == found
    assert regime(found, found != Stages()) == label == plan(schedule, prompt, output).regime


def test_a_pinned_prompt_exhausts_its_budget_exactly_where_nothing_generated_can_stay():
    for prompt, label in ((255, "active"), (256, "prefix_budget_exhausted"), (257, "prefix_budget_exhausted")):
        found = stages(Schedule("slack", 256, 16, "pinned", True, "first"), prompt, ids(100))
        assert regime(found, True) == label


def test_packed_entries_are_compressed_without_an_event():
    assert regime(Stages(), True) == "active" and regime(Stages(), False) == "never_compressed"


schedules = st.builds(
    Schedule,
    st.sampled_from(["slack", "periodic", "every_step"]),
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from(["pinned", "outside", "compete", "two_stage"]),
    st.booleans(),
    st.sampled_from(["first", "last"]),
    st.integers(0, 5),
)


@given(schedules, st.integers(1, 80), st.integers(1, 120))
def test_a_record_says_of_itself_what_its_schedule_says(schedule, prompt, output):
    account = expected(schedule, Footprint(1, 4, 2), prompt, ids(output), 1)
    found = stages(schedule, prompt, ids(output))
    record = made(residency=stored(account), stages=StagesRecord.of(found))
    again = parse(line_of(record), "line")
    assert again.stages.stages() == found
    assert again.regime == regime(found, account.active) == plan(schedule, prompt, output).regime
    assert sum(found.guards.values()) + found.decode_events <= len(account.events)


def stored(account):
    return ResidencyRecord(**{k: v for k, v in account.to_json().items() if k != "chains"})


def made(**fields):
    return Record(
        study="s",
        registration=ZERO,
        phase="dev",
        cell="m/b64",
        arm="baseline",
        problem="p",
        problem_digest=ZERO,
        sample=0,
        seed="0" * 32,
        status="finished",
        prompt_tokens=3,
        output_tokens=1,
        output="1",
        output_ids=[1],
        grade=GradeRecord(correct=True, extracted="1", how="box", grader="g/1"),
        **fields,
    )


def test_records_from_before_say_nothing_and_keep_their_bytes():
    old = made(residency=stored(expected(Schedule("slack", 4, 2, "compete"), Footprint(1, 4, 2), 9, ids(9), 1)))
    assert b"stages" not in line_of(old) and old.regime is None
    assert made(residency=None).regime is None
    untouched = expected(Schedule("never", 1, 1, "outside"), Footprint(1, 4, 2), 9, ids(9), 1)
    assert made(residency=stored(untouched)).regime == "never_compressed"
