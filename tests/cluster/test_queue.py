"""Which trials go to which worker, and what becomes of them when it dies: bookkeeping, without a cluster."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.cluster.queue import ATTEMPTS, Block, Job, Queue, Tally


def jobs(*counts, groups=None, whole=False):
    groups = groups or ["model"] * len(counts)
    trials = [tuple((f"p{n}", 0) for n in range(count)) for count in counts]
    return [Job(f"arm{i}", group, own, whole) for i, (own, group) in enumerate(zip(trials, groups))]


def test_blocks_are_large_first_and_small_in_the_end_and_cover_every_trial_once():
    queue, sizes, seen = Queue(jobs(100, 60), slots=8), [], []
    while (block := queue.take(4)) is not None:
        sizes.append(len(block.trials))
        seen += [(block.job, t) for t in block.trials]
    assert sizes[0] == 20 and sizes[-1] <= 4 and max(sizes) <= 4 * 8
    assert len(seen) == len(set(seen)) == 160 and not queue


def test_a_worker_goes_on_with_the_model_that_it_holds():
    queue = Queue(jobs(20, 40, 20, groups=["a", "b", "a"]), slots=4)
    held, order = None, []
    while (block := queue.take(1, held)) is not None:
        held = queue.jobs[block.job].group
        order.append(held)
    assert sorted(order) in (order, order[::-1])  # it changes once


def test_workers_begin_where_most_is_left():
    """Blocks of replays, whose full-cache logits a worker keeps: each worker has a block of its own."""
    queue = Queue(jobs(5, 5, 5, 5, groups=[0, 0, 1, 1], whole=True), slots=64)
    first, second = queue.take(2), queue.take(2)
    assert queue.jobs[first.job].group != queue.jobs[second.job].group
    assert len(first.trials) == 5
    again = queue.take(2, held=queue.jobs[first.job].group)
    assert queue.jobs[again.job].group == queue.jobs[first.job].group


def test_what_a_dead_worker_had_finished_is_not_run_again():
    queue = Queue(jobs(8), slots=8)
    block = queue.take(1)
    (again,) = queue.died(block, block.trials[3:], "gone")
    assert again == Block(0, block.trials[3:], 1)
    assert queue.take(1) == again
    assert queue.died(again, [], "gone") == []


def test_a_block_that_dies_often_is_taken_apart_and_the_trial_at_fault_is_given_up():
    queue, done, deaths = Queue(jobs(16), slots=16), [], 0
    while (block := queue.take(1)) is not None:
        if ("p5", 0) in block.trials:
            deaths += 1
            queue.died(block, block.trials, "killed")
        else:
            done += block.trials
    ((lost, why),) = queue.given_up
    assert lost.trials == (("p5", 0),) and why == "killed" and lost.deaths >= ATTEMPTS
    assert sorted(done) == sorted(t for t in jobs(16)[0].trials if t != ("p5", 0))
    assert deaths <= ATTEMPTS + 4  # halves of 16 are found in four cuts


def test_one_trial_alone_has_its_attempts():
    queue = Queue(jobs(1), slots=4)
    for n in range(ATTEMPTS):
        assert queue.take(1).deaths == n
        queue.died(Block(0, (("p0", 0),), n), [("p0", 0)], "killed")
    assert queue.take(1) is None and len(queue.given_up) == 1


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=5),
    st.integers(1, 5),
    st.integers(1, 16),
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 29)), max_size=3),
    st.integers(0, 2**32),
)
def test_every_trial_is_finished_once_or_given_up(shape, workers, slots, poison, seed):
    """Workers die at poisoned trials always, and otherwise now and then, after some part of their block."""
    rng = random.Random(seed)
    made = jobs(*[c for c, _ in shape], groups=[g for _, g in shape])
    queue, done, busy, accidents = Queue(made, slots), [], [], 3
    steps = 0
    while queue or busy:
        steps += 1
        assert steps < 10_000
        while len(busy) < workers and (block := queue.take(workers)) is not None:
            busy.append(block)
        block = busy.pop(rng.randrange(len(busy)))
        bad = next((i for i, (p, _) in enumerate(block.trials) if (block.job, int(p[1:])) in poison), None)
        accident = accidents and rng.random() < 0.2
        accidents -= bool(accident)
        stop = len(block.trials) if bad is None else bad
        stop = rng.randint(0, stop) if accident else stop
        done += [(block.job, t) for t in block.trials[:stop]]
        if bad is not None or accident:
            queue.died(block, block.trials[stop:], "died")
    lost = [(block.job, t) for block, _ in queue.given_up for t in block.trials]
    assert sorted(done + lost) == sorted((i, t) for i, job in enumerate(made) for t in job.trials)
    assert {(i, int(t[0][1:])) for i, t in lost} >= {(i, n) for i, n in poison if i < len(made) and n < shape[i][0]}


def test_what_died_is_counted():
    tally = Tally()
    assert tally.lost is None
    block = Block(0, (("p0", 0), ("p1", 0)), 1)
    tally.died(block, [("p1", 0)])
    tally.died(block, [("p1", 0)])
    tally.died(None)
    assert tally.lost.model_dump() == {"workers": 3, "trials": 1, "attempts": 3}


@pytest.mark.parametrize("workers", [1, 3, 1000])
def test_small_studies_are_shared_out(workers):
    queue, count = Queue(jobs(10, 10, 10), slots=64), 0
    while queue.take(workers) is not None:
        count += 1
    assert count >= min(workers, 6)
