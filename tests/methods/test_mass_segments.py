"""Segments, quotas and AMS's selector against slow oracles, and what they guarantee for any input."""

import dataclasses
import math
import time
from fractions import Fraction

import attention_oracle
import pytest
import torch
from cask_methods.scorers.tova import TOVAScorer
from cask_methods.selectors import quotas, segments
from cask_methods.selectors.mass import CREDIT, credited, mass_of
from cask_methods.selectors.mass_segments import PADS, MassSegments, within
from cask_methods.selectors.top_k import TopK
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single

from cask_eval.engine.contract import Needs
from cask_eval.errors import MethodError

# --- oracles: one row at a time, plain loops ---


def slow_cut(mass, step):
    """Where segments begin."""
    starts, total, k = {0}, 0.0, 1
    for i, m in enumerate(mass):
        total += m
        while k * step < 1 - 1e-9 and total >= k * step - 1e-12:
            starts.add(i)
            k += 1
    return sorted(starts)


def slow_merge(starts, length, shortest, close):
    out, open_at = [0], 0
    for s in [*starts[1:], length]:
        if s < length and s - open_at >= shortest:
            out.append(s)
            open_at = s
    if close and len(out) > 1 and length - out[-1] < shortest:
        out.pop()
    return out


def slow_split(starts, length, longest):
    out = []
    for s, e in zip(starts, [*starts[1:], length], strict=True):
        k = math.ceil((e - s) / longest)
        pieces = [(e - s) // k + (j < (e - s) % k) for j in range(k)]
        assert sum(pieces) == e - s and max(pieces) <= longest
        out.append((s, sorted(pieces)))
    return out


def slow_apportion(weights, caps, total):
    """Exactly, in fractions: fix one more cap until none is exceeded."""
    weights = [Fraction(w) for w in weights]
    capped = {i for i, c in enumerate(caps) if c == 0}
    while True:
        rest = [i for i in range(len(caps)) if i not in capped]
        left = total - sum(caps[i] for i in capped)
        share = {i: left * weights[i] / sum(weights[j] for j in rest) for i in rest}
        over = {i for i in rest if share[i] >= caps[i]}
        if not over:
            break
        capped |= over
    out = [caps[i] if i in capped else math.floor(share[i]) for i in range(len(caps))]
    for i in sorted(rest, key=lambda i: (-(share[i] - math.floor(share[i])), i))[: total - sum(out)]:
        out[i] += 1
    return out


def slow_lowered(floors, weights, total):
    if sum(floors) <= total:
        return list(floors)
    t = max(t for t in range(max(floors) + 1) if sum(min(f, t) for f in floors) <= total)
    out = [min(f, t) for f in floors]
    open_ = [i for i, f in enumerate(floors) if f > t]
    for i in sorted(open_, key=lambda i: (-weights[i], i))[: total - sum(out)]:
        out[i] += 1
    return out


def slow_select(scores, resident, candidates, mass, quota, *, step, shortest, longest, floor):
    """AMS's event on one row of `resident` entries, from its description. mass: of every entry, to any scale."""
    mass = [mass[i] if i in candidates else 0.0 for i in range(resident)]
    pool = sum(mass)
    cuts = slow_merge(slow_cut([m / pool for m in mass], step), resident, shortest, close=True)
    bounds = []
    for s, pieces in slow_split(cuts, resident, longest):
        k, size = len(pieces), sum(pieces)
        inner = [s + math.ceil(Fraction(size * j, k)) for j in range(k)]
        bounds += list(zip(inner, [*inner[1:], s + size], strict=True))
    weights = [sum(mass[i] for i in range(a, b)) for a, b in bounds]
    free = [[i for i in range(a, b) if i in candidates] for a, b in bounds]
    floors = [max(0, min(floor, b - a) - (b - a - len(f))) for (a, b), f in zip(bounds, free, strict=True)]
    given_ = slow_lowered(floors, weights, quota)
    caps = [len(f) - g for f, g in zip(free, given_, strict=True)]
    if quota > sum(given_):
        more = slow_apportion(weights, caps, quota - sum(given_))
        given_ = [g + m for g, m in zip(given_, more, strict=True)]
    kept = set()
    for f, g in zip(free, given_, strict=True):
        kept |= set(sorted(f, key=lambda i: (-scores[i], i))[:g])
    return kept, bounds, floors, given_


def slow_mass(e, at, window, pad, decay=0.8, mix=0.7):
    """The smoothed mass and the new credit of one head, from the definition."""
    layer, r, _ = at
    n = int(e.resident[at].sum())
    past = [p < int(e.length[r]) - window for p in e.positions[at].tolist()[:n]]
    mean = attention_oracle.mean(e, *at, window)[:n]
    found = attention_oracle.pool(mean, past, 5, "avg")
    of_past = [x for x, p in zip(found, past, strict=True) if p]
    fill = {"head_max": max(of_past, default=0.0), "mean": sum(of_past) / max(1, len(of_past)), "none": 0.0}[pad]
    found = [x if p else fill for x, p in zip(found, past, strict=True)]
    mass = [x + 1e-12 for x in found]
    mass = [m / sum(mass) for m in mass]
    credit = [decay * c + (1 - decay) * m for c, m in zip(e.traits[CREDIT][at].tolist()[:n], mass, strict=True)]
    smooth = [mix * m + (1 - mix) * c / sum(credit) for m, c in zip(mass, credit, strict=True)]
    return [m / sum(smooth) for m in smooth], credit


# --- cases ---


def case(window=4, lengths=(40, 26, 9), prompts=(5, 3, 2), seed=0, shared=(), **kw):
    """(entries, scores, candidates, quota) with the prompt protected."""
    e = entries(geometry(head_dim=8), lengths, prompts, seed=seed, needs=MassSegments(window).needs, **kw)
    candidates = e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1))
    for axis in shared:
        candidates = candidates.narrow(axis, 0, 1)
    scores = torch.randn(candidates.shape, generator=torch.Generator().manual_seed(seed))
    quota = torch.tensor([n // 2 for n in lengths])[None, :, None].expand(candidates.shape[:-1])
    return e, scores, candidates, quota


@dataclasses.dataclass(frozen=True)
class Given(MassSegments):
    """The selector with a mass that a test sets."""

    mass: torch.Tensor | None = None

    def _mass(self, entries):
        return self.mass, {}


def one(mass, scores, quota, candidates=None, **options):
    """(kept indices, measures) of a single row with `mass` [n]."""
    n = len(mass)
    e = entries(geometry(layers=1, kv_heads=1, head_dim=4), (n,), (0,))
    mask = torch.ones(n, dtype=torch.bool) if candidates is None else candidates
    mass = torch.as_tensor(mass, dtype=torch.float64).view(1, 1, 1, n)
    scores = torch.as_tensor(scores, dtype=torch.float32).view(1, 1, 1, n)
    got = Given(**options, mass=mass).select(scores, mask.view(1, 1, 1, n), torch.tensor([[[quota]]]), e)
    return set(got.keep.flatten().nonzero().flatten().tolist()), got.measures


integers = st.integers(0, 2**32 - 1)


# --- segments ---


@given(integers, st.integers(1, 70), st.sampled_from([0.005, 0.02, 0.1, 0.3, 1.0]), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_segments_equal_the_loops(seed, n, step, shortest):
    """Dyadic masses, whose sums are exact; zeros, spikes and flat rows; two rows of unequal length."""
    g = torch.Generator().manual_seed(seed)
    longest = 2 * shortest - 1 + int(torch.randint(4, (1,), generator=g))
    rows, lengths = [], torch.tensor([n, max(1, n // 2)])
    for length in lengths.tolist():
        kind = int(torch.randint(3, (1,), generator=g))
        raw = torch.randint(1, 9, (length,), generator=g) ** [0, 1, 6][kind] * (torch.rand(length, generator=g) < 0.8)
        raw[int(torch.randint(length, (1,), generator=g))] += 1
        rows.append(torch.nn.functional.pad(raw.double() / raw.sum(), (0, n - length)))
    starts = segments.cut(torch.stack(rows), lengths, step)
    merged = segments.merge(starts, lengths, shortest, most=segments.most(step), close=True)
    shipped = segments.merge(starts, lengths, shortest, most=segments.most(step), close=False)
    final = segments.split(merged, lengths, longest, even=True)
    for r, length in enumerate(lengths.tolist()):
        cuts = slow_cut(rows[r].tolist()[:length], step)
        assert starts[r].nonzero().flatten().tolist() == cuts
        assert len(cuts) <= segments.most(step)
        assert merged[r].nonzero().flatten().tolist() == slow_merge(cuts, length, shortest, close=True)
        assert shipped[r].nonzero().flatten().tolist() == slow_merge(cuts, length, shortest, close=False)
        at = final[r].nonzero().flatten().tolist()
        sizes = [b - a for a, b in zip(at, [*at[1:], length], strict=True)]
        for s, pieces in slow_split(slow_merge(cuts, length, shortest, close=True), length, longest):
            j = at.index(s)
            assert sorted(sizes[j : j + len(pieces)]) == pieces
        assert all(shortest <= x <= longest for x in sizes) or len(sizes) == 1 and length < shortest
        numbers = segments.number(final)[r, :length].tolist()
        assert numbers == [sum(a <= i for a in at) - 1 for i in range(length)]


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([0.005, 0.02, 0.3, 1.0]), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_equal_segments(n, length, step, shortest):
    length, longest = min(n, length), 3 * shortest
    starts = segments.equal(torch.tensor([length]), n, step, shortest, longest)[0]
    at = starts.nonzero().flatten().tolist()
    sizes = [b - a for a, b in zip(at, [*at[1:], length], strict=True)]
    assert at[0] == 0 and max(sizes) - min(sizes) <= 1
    wanted = segments.most(step)
    assert len(sizes) == min(max(1, length // shortest), max(wanted, math.ceil(length / longest)))


def test_fixed_pieces():
    starts = torch.zeros(1, 10, dtype=torch.bool)
    starts[0, [0, 7]] = True
    assert segments.split(starts, torch.tensor([10]), 3, even=False)[0].nonzero().flatten().tolist() == [0, 3, 6, 7]
    assert segments.split(starts, torch.tensor([9]), 3, even=True)[0].nonzero().flatten().tolist() == [0, 3, 5, 7]


def test_a_flat_row_is_cut_evenly_whatever_the_rounding():
    mass = torch.full((1, 50), 1 / 50, dtype=torch.float64)
    assert segments.cut(mass, torch.tensor([50]), 0.1)[0].nonzero().flatten().tolist() == [
        0, 4, 9, 14, 19, 24, 29, 34, 39, 44,
    ]  # fmt: skip


# --- quotas ---


@given(integers, st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_apportionment_equals_exact_fractions(seed, size):
    g = torch.Generator().manual_seed(seed)
    spread = int(torch.randint(1, 4, (1,), generator=g))
    weights = torch.randint(1, 5, (3, size), generator=g).double() ** spread / 7
    caps = torch.randint(0, 9, (3, size), generator=g)
    totals = (caps.sum(-1) * torch.rand(3, generator=g)).long()
    totals[2] = caps[2].sum()
    got = quotas.apportion(weights, caps, totals)
    assert got.sum(-1).tolist() == totals.tolist() and bool((got <= caps).all()) and bool((got >= 0).all())
    for r in range(3):
        whole = [int(w * 7 + 0.5) for w in weights[r].tolist()]
        if caps[r].sum():
            assert got[r].tolist() == slow_apportion(whole, caps[r].tolist(), int(totals[r]))


def test_apportionment_of_extreme_weights():
    weights = torch.tensor([[1.0, 1e-15, 1e-15, 1e-300], [1e300, 1.0, 1.0, 1.0]], dtype=torch.float64)
    caps = torch.tensor([[2, 5, 5, 5], [2, 3, 3, 3]])
    assert quotas.apportion(weights, caps, torch.tensor([7, 8])).tolist() == [[2, 3, 2, 0], [2, 2, 2, 2]]
    assert quotas.apportion(weights, caps, torch.tensor([17, 11])).tolist() == caps.tolist()
    assert quotas.apportion(weights, caps, torch.tensor([0, 1])).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]


@given(integers, st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_levels_turns_and_lowered_floors(seed, size):
    g = torch.Generator().manual_seed(seed)
    rooms = torch.randint(0, 7, (4, size), generator=g)
    weights = torch.randint(1, 4, (4, size), generator=g).double()
    totals = torch.randint(0, int(rooms.sum(-1).max()) + 3, (4,), generator=g)
    turned, floors = quotas.in_turn(rooms, totals), quotas.lowered(rooms, weights, totals)
    for r in range(4):
        room, total = rooms[r].tolist(), int(totals[r])
        given_, left = [0] * size, total
        while left and any(a < b for a, b in zip(given_, room, strict=True)):
            for i in range(size):
                if left and given_[i] < room[i]:
                    given_[i] += 1
                    left -= 1
        assert turned[r].tolist() == given_
        assert floors[r].tolist() == slow_lowered(room, weights[r].tolist(), total)
        assert int(floors[r].sum()) == min(total, sum(room))


def test_with_more_floors_than_entries_the_heaviest_get_one():
    weights = torch.tensor([[0.1, 0.3, 0.1, 0.3, 0.2]], dtype=torch.float64)
    assert quotas.lowered(torch.full((1, 5), 8), weights, torch.tensor([3])).tolist() == [[0, 1, 0, 1, 1]]
    assert quotas.lowered(torch.full((1, 5), 8), weights, torch.tensor([2])).tolist() == [[0, 1, 0, 1, 0]]
    assert quotas.lowered(torch.full((1, 5), 8), weights, torch.tensor([12])).tolist() == [[2, 3, 2, 3, 2]]


# --- the mass ---


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize(("decay", "mix"), [(0.8, 0.7), (0.5, 0.2), (0.9, 1.0)])
def test_mass_equals_the_loops(pad, decay, mix):
    """Lengths above, near and below the window; the padding holds NaN."""
    e, *_ = case(4, (30, 6, 3), (2, 1, 1))
    smooth, traits = MassSegments(4, pad=pad, decay=decay, mix=mix)._mass(e)
    assert (CREDIT in traits) == (mix < 1)
    for at in attention_oracle.every(e):
        want, credit = slow_mass(e, at, 4, pad, decay, mix)
        n = len(want)
        assert smooth[at].tolist()[:n] == pytest.approx(want, abs=1e-6)
        assert not smooth[at][n:].any()
        if mix < 1:
            assert traits[CREDIT][at].tolist()[:n] == pytest.approx(credit, abs=1e-6)
            assert traits[CREDIT].dtype == torch.float32 and not traits[CREDIT][at][n:].any()


def test_credit_of_none_changes_no_mass_and_follows_the_recurrence():
    e, *_ = case()
    mass = mass_of(torch.rand(e.positions.shape, dtype=torch.float64), e.resident)
    fresh = dataclasses.replace(e, traits={CREDIT: torch.zeros_like(e.traits[CREDIT])})
    smooth, credit = credited(mass, fresh, 0.8, 0.7)
    assert torch.allclose(smooth, mass, atol=1e-15) and torch.allclose(credit.double(), 0.2 * mass)
    smooth, again = credited(mass, dataclasses.replace(e, traits={CREDIT: credit}), 0.8, 0.7)
    assert torch.allclose(again.double(), 0.36 * mass) and torch.allclose(smooth, mass, atol=1e-7)


def test_stale_credit_beyond_a_rows_end_does_not_count():
    e, scores, candidates, quota = case()
    stale = torch.where(e.resident, e.traits[CREDIT], 1e6)
    a, b = (
        MassSegments(4).select(scores, candidates, quota, dataclasses.replace(e, traits={CREDIT: c}))
        for c in (e.traits[CREDIT], stale)
    )
    assert torch.equal(a.keep, b.keep) and torch.equal(a.traits[CREDIT], b.traits[CREDIT])


# --- the selector ---


@given(
    integers,
    st.integers(1, 60),
    st.sampled_from([0.005, 0.02, 0.1, 0.5, 1.0]),
    st.integers(1, 9),
    st.integers(0, 12),
)
@settings(max_examples=200, deadline=None)
def test_an_event_equals_the_loops(seed, n, step, shortest, floor):
    """Any mass (whole numbers, whose ties are exact), protection, quota and tied scores; more segments than entries to
    keep; floors; counts; reports."""
    g = torch.Generator().manual_seed(seed)
    longest = 2 * shortest - 1 + int(torch.randint(5, (1,), generator=g))
    raw = torch.randint(1, 2**10, (n,), generator=g).double() ** int(torch.randint(3, (1,), generator=g))
    candidates = torch.rand(n, generator=g) < 0.7
    candidates[int(torch.randint(n, (1,), generator=g))] = True
    scores = torch.randint(4, (n,), generator=g).float()
    quota = int(torch.randint(int(candidates.sum()) + 1, (1,), generator=g))
    options = {"step": step, "shortest": shortest, "longest": longest, "floor": floor}
    kept, measures = one(raw, scores, quota, candidates, **options)
    pool = set(candidates.nonzero().flatten().tolist())
    want, bounds, floors, given_ = slow_select(scores.tolist(), n, pool, raw.tolist(), quota, **options)
    assert kept == want and len(kept) == quota
    assert float(measures["segments"]) == len(bounds)
    assert float(measures["floors_lowered"]) == (sum(floors) > quota)
    counts = [sum(a <= i < b for i in kept) for a, b in bounds]
    assert counts == given_
    if sum(floors) <= quota:
        assert all(c >= f for c, f in zip(counts, floors, strict=True))
        residents = [c + sum(i not in pool for i in range(a, b)) for c, (a, b) in zip(counts, bounds, strict=True)]
        assert all(c >= min(floor, b - a) for c, (a, b) in zip(residents, bounds, strict=True))


@pytest.mark.parametrize("shared", [(), (0,), (2,), (0, 2)])
@pytest.mark.parametrize("pad", PADS)
def test_an_event_from_the_attention_on_equals_the_loops(shared, pad):
    e, scores, candidates, quota = case(4, shared=shared)
    options = {"step": 0.1, "shortest": 3, "longest": 12, "floor": 2}
    got = MassSegments(4, pad=pad, **options).select(scores, candidates, quota, e)
    assert got.keep.shape == scores.shape
    for layer, r, h in attention_oracle.every(
        dataclasses.replace(e, positions=e.positions[: len(scores), :, : scores.shape[2]])
    ):
        layers = range(3) if scores.shape[0] == 1 else [layer]
        heads = range(2) if scores.shape[2] == 1 else [h]
        masses = [slow_mass(e, (a, r, b), 4, pad)[0] for a in layers for b in heads]
        mass = [sum(column) / len(masses) for column in zip(*masses, strict=True)]
        pool = set(candidates[layer, r, h].nonzero().flatten().tolist())
        want, *_ = slow_select(scores[layer, r, h].tolist(), len(mass), pool, mass, int(quota[layer, r, h]), **options)
        assert set(got.keep[layer, r, h].nonzero().flatten().tolist()) == want


@pytest.mark.parametrize("segmentation", ["mass", "uniform"])
def test_rows_of_a_batch_do_not_touch_each_other(segmentation):
    e, scores, candidates, quota = case()
    selector = MassSegments(4, 0.1, 3, 12, segmentation=segmentation)
    batch = selector.select(scores, candidates, quota, e)
    assert (batch.keep.sum(-1) == quota).all() and not (batch.keep & ~candidates).any()
    for r in range(3):
        alone = single(e, r)
        n = alone.positions.shape[-1]
        got = selector.select(scores[:, r : r + 1, :, :n], candidates[:, r : r + 1, :, :n], quota[:, r : r + 1], alone)
        assert torch.equal(got.keep, batch.keep[:, r : r + 1, :, :n])
        for name, value in got.traits.items():
            assert torch.allclose(value, batch.traits[name][:, r : r + 1, :, :n], atol=1e-6)
        for name, value in got.measures.items():
            assert torch.allclose(value, batch.measures[name][r : r + 1])


def test_one_segment_without_padding_is_the_scorers_top_k():
    """Bit for bit, ties included; and so is a floor of 0 in one segment of any kind."""
    e, scores, candidates, quota = case()
    scores = scores.round()
    want = TopK().select(scores, candidates, quota, e).keep
    for options in ({"step": 1.0}, {"step": 0.02, "shortest": 41, "longest": 81}, {"step": 1.0, "floor": 0}):
        got = MassSegments(4, pad="none", **{"longest": 256, **options}).select(scores, candidates, quota, e)
        assert torch.equal(got.keep, want)
        assert got.measures["segments"].tolist() == [1, 1, 1] and got.measures["top_k_overlap"].tolist() == [1, 1, 1]


def test_mix_of_one_needs_and_knows_no_credit():
    e, scores, candidates, quota = case()
    selector = MassSegments(4, 0.1, 3, 12, mix=1.0)
    assert selector.needs == Needs(queries=4)
    got = selector.select(scores, candidates, quota, dataclasses.replace(e, traits={}))
    fresh = dataclasses.replace(e, traits={CREDIT: torch.zeros_like(e.traits[CREDIT])})
    assert torch.equal(got.keep, MassSegments(4, 0.1, 3, 12).select(scores, candidates, quota, fresh).keep)
    assert not got.traits


def test_the_uniform_control_looks_at_no_mass():
    e, scores, candidates, quota = case()
    selector = MassSegments(4, 0.25, 2, 40, 1, segmentation="uniform")
    assert selector.needs == Needs()
    bare = dataclasses.replace(e, queries=None, query_positions=None, traits={})
    got = selector.select(scores, candidates, quota, bare)
    assert got.measures["segments"].tolist() == [4, 4, 4] and not got.traits
    # 40 entries, 20 to keep, 5 of 10 protected in the first quarter: 5 each, as far as there are any.
    quarters = got.keep[:, 0].unflatten(-1, (4, 10)).sum(-1)
    assert (quarters == 5).all()


def test_protected_entries_count_for_their_segments_floor():
    """Two segments, the second from the entry on that reaches half the mass; floor 4: four protected entries in the
    first leave all that is free to the second."""
    candidates = torch.ones(20, dtype=torch.bool)
    candidates[:4] = False
    mass, scores = [0.05] * 20, [1.0] * 9 + [0.0] * 11
    options = {"step": 0.5, "shortest": 5, "longest": 20, "floor": 4}
    kept, _ = one(mass, scores, 4, candidates, **options)
    assert all(i >= 9 for i in kept)
    kept, _ = one(mass, scores, 4, None, **options)
    assert sum(i < 9 for i in kept) == 2  # floors of 4 and 4 do not fit into 4: lowered to 2 and 2


def test_mass_of_protected_entries_draws_nothing_to_their_segment():
    candidates = torch.ones(20, dtype=torch.bool)
    candidates[0] = False
    mass = [100.0] + [1.0] * 9 + [1.0] * 10
    kept, _ = one(mass, [0.0] * 20, 10, candidates, step=0.5, shortest=5, longest=20, floor=0)
    assert sum(i < 10 for i in kept) == 5


@given(integers, st.integers(1, 50), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_guarantees_for_any_n_and_b(seed, n, shortest):
    """Zero mass, one spike, flat mass, b up to everything that is free, scores all equal: exact counts."""
    g = torch.Generator().manual_seed(seed)
    candidates = torch.rand(n, generator=g) < 0.6
    free = int(candidates.sum())
    spike = torch.zeros(n)
    spike[int(torch.randint(n, (1,), generator=g))] = 1
    for mass in (torch.zeros(n), torch.ones(n), spike, spike + 1e-30):
        for quota in {0, min(1, free), free // 2, free}:
            mass = mass.double() + 1e-12
            kept, _ = one(mass, torch.zeros(n), quota, candidates, step=0.005, shortest=shortest, longest=64, floor=8)
            assert len(kept) == quota and all(bool(candidates[i]) for i in kept)


def test_more_segments_than_entries_ends_quickly():
    """The published code loops forever on this: flat mass, 4096 entries, 100 segments, 64 to keep."""
    began = time.process_time()
    kept, measures = one(torch.ones(4096), torch.zeros(4096), 64, step=0.005, shortest=32, longest=1024, floor=8)
    assert time.process_time() - began < 2
    assert len(kept) == 64 and float(measures["segments"]) > 64 and float(measures["floors_lowered"]) == 1
    blocks = {i // 64 for i in kept}
    assert len(blocks) >= 32


@pytest.mark.parametrize("pad", PADS)
def test_zero_and_identical_keys_and_values(pad):
    e, scores, candidates, quota = case()
    for fill in (0.0, 1.0):
        flat = dataclasses.replace(e, keys=torch.full_like(e.keys, fill), values=torch.full_like(e.values, fill))
        got = MassSegments(4, 0.1, 3, 12, pad=pad).select(scores, candidates, quota, flat)
        assert (got.keep.sum(-1) == quota).all() and not (got.keep & ~candidates).any()


def test_half_precision_is_computed_in_fp32():
    e, scores, candidates, quota = case(dtype=torch.bfloat16)
    wide = dataclasses.replace(e, keys=e.keys.float(), queries=e.queries.float())
    a, b = (MassSegments(4, 0.1, 3, 12).select(scores, candidates, quota, x) for x in (e, wide))
    assert torch.equal(a.keep, b.keep) and torch.equal(a.traits[CREDIT], b.traits[CREDIT])


def test_wraps_a_shared_score():
    e, _, _, quota = case()
    candidates = (e.resident & (e.positions >= e.prompt_tokens.view(1, -1, 1, 1)))[:, :, :1]
    scores = TOVAScorer().score(e, candidates)
    got = MassSegments(4, 0.1, 3, 12).select(scores, candidates, quota[:, :, :1], e)
    assert got.keep.shape == candidates.shape and (got.keep.sum(-1) == quota[:, :, :1]).all()
    assert got.traits[CREDIT].shape == e.positions.shape


def test_within_breaks_ties_by_position_and_ignores_others():
    scores = torch.tensor([[1.0, 2.0, 2.0, 9.0, 0.0, -0.0, 5.0]])
    candidates = torch.tensor([[True, True, True, False, True, True, False]])
    numbers = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    got = within(scores, candidates, numbers, torch.tensor([[2, 1, 0]]))
    assert got.tolist() == [[False, True, True, False, True, False, False]]


def test_bounds_that_cannot_hold_are_refused():
    with pytest.raises(MethodError, match="at least 31"):
        MassSegments(shortest=16, longest=30)


def test_queries_are_needed():
    e, scores, candidates, quota = case()
    with pytest.raises(MethodError, match="remembered"):
        MassSegments(5).select(scores, candidates, quota, e)
