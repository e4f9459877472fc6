"""U13: the account by hand, against a meter that counts bytes step by step, and the sawtooth figures of the
literature."""

import random
from dataclasses import asdict, fields, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.footprint import Footprint, Packing
from cask_eval.residency import Residency, expected, join, walk
from cask_eval.schedule import OVERFLOWS, PROMPTS, TRIGGERS, Book, Schedule

PLAIN = Footprint(6, 1, 4)  # 2 layers of 3 heads, 8 bytes an entry


def meter(schedule, footprint, prompt, tokens):
    """Entries per head that each step reads, with the events' (step, before, after)."""
    book, reads, events = Book(schedule, prompt), [], []
    if schedule.compresses_prompt(prompt):
        book.fire()
        events.append((0, prompt, book.resident))
    for step, token in enumerate(tokens, 1):
        book.grow()
        reads.append(book.resident)
        if book.due(token):
            before = book.resident
            book.fire()
            events.append((step, before, book.resident))
    return reads, events


@st.composite
def footprints(draw):
    packing = draw(st.sampled_from([None, Packing(2, 2, 6), Packing(4, 4, 4), Packing(8, 1, 3)]))
    return Footprint(
        6,
        8,
        draw(st.sampled_from([2, 4])),
        packing,
        trait_bytes=draw(st.sampled_from([0, 4])),
        shared_bytes=draw(st.sampled_from([0, 3])),
        fixed_bytes=draw(st.sampled_from([0, 1000])),
    )


@st.composite
def schedules(draw):
    trigger, delta = draw(st.sampled_from(TRIGGERS)), draw(st.integers(1, 20))
    boundary = trigger == "boundary"
    return Schedule(
        trigger,
        draw(st.integers(1, 40)),
        delta,
        draw(st.sampled_from(PROMPTS)),
        draw(st.booleans()),
        draw(st.sampled_from(OVERFLOWS)),
        draw(st.integers(0, 12)),
        draw(st.integers(1, delta)) if boundary else 0,
        (1,) if boundary else (),
    )


OUTPUTS = st.tuples(st.integers(1, 150), st.integers(0, 999)).map(
    lambda o: random.Random(o[1]).choices(range(4), k=o[0])
)


def test_ten_steps_by_hand():
    # b = 4, delta = 3, prompt of 3 pinned inside: 4 5 6 7→4 5 6 7→4 5 6 7→4 5
    account = walk(Schedule("slack", 4, 3, "pinned"), replace(PLAIN, trait_bytes=2, fixed_bytes=5), 3, 10, layers=2)
    entries = 4 + 5 + 6 + 7 + 5 + 6 + 7 + 5 + 6 + 7
    assert account.events == [(4, 42, 24), (7, 42, 24), (10, 42, 24)]
    assert (account.layers, account.kv_heads, account.heads, account.entry_bytes) == (2, 3, 6, 8)
    assert (account.entries, account.payload_bytes) == (entries * 6, entries * 6 * 8)
    assert account.aux_bytes == entries * 6 * 2 + 10 * 5
    assert (account.peak_entries, account.peak_bytes) == (7 * 6, 7 * 6 * 8 + 7 * 6 * 2 + 5)
    assert account.mean == Fraction(entries * 6 * 10 + 50, 10 * 6 * 8)
    assert account.peak == Fraction(7 * 6 * 10 + 5, 6 * 8)
    assert account.active


@given(schedules(), footprints(), st.integers(1, 60), OUTPUTS)
@settings(max_examples=300)
def test_the_walk_is_the_count(schedule, footprint, prompt, output):
    tokens = output[:-1]  # the last token is never read
    account = walk(schedule, footprint, prompt, len(tokens), 2, output)
    reads, events = meter(schedule, footprint, prompt, tokens)
    assert account.events == [(t, n * 6, m * 6) for t, n, m in events]
    assert account.entries == sum(reads) * 6
    assert account.payload_bytes == sum(map(footprint.payload, reads))
    assert account.aux_bytes == sum(map(footprint.auxiliary, reads))
    assert account.peak_entries == max(reads, default=0) * 6
    assert account.peak_bytes == max(map(footprint.total, reads), default=0)
    assert account.again(footprint) == account
    assert expected(schedule, footprint, prompt, [output], 2) == account


@given(schedules(), footprints(), st.integers(1, 40), st.lists(OUTPUTS, min_size=2, max_size=4))
@settings(max_examples=150)
def test_chains_are_summed_while_they_live(schedule, footprint, prompt, outputs):
    whole = replace(
        schedule, budget=schedule.budget + 4, delta=schedule.delta + 4, chains=len(outputs), earliest=schedule.earliest
    )
    account = expected(whole, footprint, prompt, outputs, 2)
    reads = [meter(part, footprint, prompt, o[:-1])[0] for part, o in zip(whole.split(), outputs, strict=True)]
    steps = max(map(len, reads))
    alive = [[r[t] for r in reads if t < len(r)] for t in range(steps)]
    assert account.steps == steps and account.events == []
    assert account.entries == sum(map(sum, reads)) * 6
    assert account.payload_bytes == sum(footprint.payload(n) for row in alive for n in row)
    assert account.aux_bytes == sum(footprint.auxiliary(n) for row in alive for n in row)
    assert account.peak_entries == max(map(sum, alive), default=0) * 6
    assert account.peak_bytes == max((sum(map(footprint.total, row)) for row in alive), default=0)
    assert account.active == any(chain.active for chain in account.chains)
    assert account.again(footprint) == account
    for chain, output in zip(account.chains, outputs, strict=True):
        assert chain.steps == len(output) - 1


def test_two_chains_by_hand():
    # Chain one: 3→4 5→3 4 5; chain two, shorter: 3→4. Together 8, 5, 4, 5.
    part = Schedule("slack", 3, 2, "pinned")
    one, two = walk(part, PLAIN, 3, 4, 2), walk(part, PLAIN, 3, 1, 2)
    assert one.events == [(2, 30, 18), (4, 30, 18)] and two.events == []
    both = join([one, two], PLAIN)
    assert (both.steps, both.entries, both.peak_entries) == (4, (8 + 5 + 4 + 5) * 6, 48)
    assert both.mean == Fraction(22, 4) and both.peak == 8


def test_a_split_delta_keeps_the_mean():
    """methods.md §3, M5: 2 × 32 at Δ = 128 each holds 193, at Δ = 64 each what one chain holds."""
    one = Schedule("slack", 64, 128, "compete")
    halves = replace(one, chains=2)
    trial = [0] * 5001
    assert abs(expected(halves, PLAIN, 1, [trial, trial], 2).mean - 129) < 1
    unsplit = walk(replace(one, budget=32), PLAIN, 1, 5000, 2)
    assert abs(join([unsplit, unsplit], PLAIN).mean - 193) < 2


@pytest.mark.parametrize("outputs", [[[0]], [[0], [0], [0]]])
def test_as_many_outputs_as_chains(outputs):
    with pytest.raises(ValueError):
        expected(Schedule("slack", 8, 4, "pinned", chains=2), PLAIN, 3, outputs, 2)


@pytest.mark.parametrize(
    "schedule, prompt, steps, mean",
    [
        (Schedule("slack", 64, 128, "compete"), 120, 3000, 129),
        (Schedule("every_step", 64, 1, "compete"), 120, 3000, 65),
        (Schedule("slack", 512, 512, "pinned"), 120, 1000, 571),
        (Schedule("slack", 512, 512, "pinned"), 120, 8000, 744),
        (Schedule("slack", 128, 128, "pinned"), 60, 100_000, Fraction("192.5")),
    ],
)
def test_nominal_budgets_are_not_mean_caches(schedule, prompt, steps, mean):
    assert abs(walk(schedule, PLAIN, prompt, steps, 2).mean - mean) < Fraction(1, 2)


def test_what_is_packed_counts_by_its_bytes():
    """M1: 217 entries at 2 bits, residual 32, weigh what 64 full ones do."""
    footprint = Footprint(4, 128, 2, Packing(2, 32, 32))
    account = walk(Schedule("never", 1, 1, "compete"), footprint, 216, 1, 2)
    assert account.entries == 217 * 4 and abs(account.mean - 64) < 1


@pytest.mark.parametrize("chains, mean", [(1, 5), (3, 15)])
def test_a_trial_without_decode_steps_counts_with_its_prompt(chains, mean):
    account = expected(Schedule("slack", 9, 6, "pinned", chains=chains), PLAIN, 5, [[1]] * chains, 2)
    assert account.steps == 0 and account.mean == mean and account.peak == 0


@pytest.mark.parametrize(
    "events, message",
    [
        ([(5, 99, 4)], "99 entries, but"),
        ([(5, 8, 9)], "leaves 9 of 8"),
        ([(5, 8, 8)], "leaves 8 of 8"),
        ([(5, 8, 0)], "leaves 0 of 8"),
        ([(30, 8, 4)], "beyond the last"),
        ([(-1, 2, 1)], "out of order"),
        ([(5, 8, 4), (3, 8, 4)], "out of order"),
        ([(5, 8, 4), (5, 4, 2)], "out of order"),
        ([(0, 3, 2), (0, 2, 1)], "out of order"),
    ],
)
def test_an_account_that_contradicts_itself_is_refused(events, message):
    with pytest.raises(ValueError, match=message):
        Residency(1, 1, 8, 3, 20, events).settle(Footprint(1, 1, 4))


def test_heads_hold_whole_entries():
    with pytest.raises(ValueError, match="leaves 5 of 16"):
        Residency(1, 2, 8, 3, 20, [(5, 16, 5)]).settle(Footprint(2, 1, 4))


@pytest.mark.parametrize("name", [f.name for f in fields(Residency) if f.type == "int"])
def test_whatever_an_account_states_falsely_is_found(name):
    account = expected(Schedule("slack", 12, 6, "outside", chains=2), PLAIN, 4, [[0] * 30, [0] * 21], 2)
    forged = replace(account, **{name: getattr(account, name) + 1})
    assert account.again(PLAIN) == account and forged.again(PLAIN) != forged
    chain = account.chains[0]
    forged = replace(chain, **{name: getattr(chain, name) + 1})
    try:
        assert forged.again(PLAIN) != forged
    except ValueError:
        assert name in ("layers", "kv_heads", "entry_bytes", "prompt_tokens", "steps")


def test_accounts_survive_storage():
    for schedule in (Schedule("slack", 6, 3, "outside"), Schedule("slack", 6, 3, "outside", chains=2)):
        account = expected(schedule, PLAIN, 4, [[0] * 31] * schedule.chains, 2)
        assert account.active and Residency.from_json(account.to_json()) == account
        assert asdict(Residency.from_json(account.to_json())) == asdict(account)


def test_active_is_what_was_compressed_by_an_event_or_by_packing():
    never = Schedule("never", 8, 1, "compete")
    plain, packed = Footprint(4, 8, 4), Footprint(4, 8, 4, Packing(4, 8, 8))
    assert not walk(never, plain, 5, 30, 2).active
    assert walk(never, packed, 5, 30, 2).active
    assert not walk(never, packed, 2, 4, 2).active  # nothing has left the residual yet
    assert walk(Schedule("slack", 8, 4, "pinned"), plain, 5, 30, 2).active
