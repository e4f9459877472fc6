"""Merging of neighbours, one row and one rule at a time; the whole event is in test_cask.py."""

import math

import cask_oracle
import pytest
import torch
from cask_methods.selectors.core import largest, promote, ranking, room, votes
from cask_methods.selectors.runs import Rule, Scratch, merge_adjacent
from cask_methods.selectors.scratch import transferred
from hypothesis import given, settings
from hypothesis import strategies as st

ANY = Rule(window=32)


def merged(angles, merges, rule=ANY, *, mass=None, score=None, at=None, link=None, values=None):
    """The descriptors, as lists of entries, that keys at these angles form; and how many merges were not possible."""
    n = len(angles)
    direction = torch.tensor([[[math.cos(a), math.sin(a)] for a in angles]], dtype=torch.float64)
    at = torch.tensor([at or list(range(n))])
    scratch = Scratch(
        direction,
        torch.tensor([mass or [1.0] * n], dtype=torch.float64),
        torch.tensor([score or [0.0] * n], dtype=torch.float64),
        at,
        at,
        None if values is None else torch.tensor(values, dtype=torch.float32).view(1, n, 1, -1),
    )
    link = torch.tensor([link or [True] * (n - 1) + [False]])
    got = merge_adjacent(scratch, torch.ones(1, n, dtype=torch.bool), link, torch.tensor([merges]), rule)
    groups = []
    for j, starts in enumerate(got.starts[0].tolist()):
        if starts:
            groups.append([])
        groups[-1].append(j)
    for group in groups:
        assert float(got.mass[0, group[0]]) == pytest.approx(sum((mass or [1.0] * n)[j] for j in group))
        assert got.low[0, group[0]] == at[0, group[0]] and got.high[0, group[0]] == at[0, group[-1]]
    return groups, int(got.short)


def test_the_most_alike_pair_goes_first():
    assert merged([0, 0.5, 0.6, 1.5], 1) == ([[0], [1, 2], [3]], 0)
    assert merged([0, 0.5, 0.6, 1.5], 2) == ([[0, 1, 2], [3]], 0)


def test_equal_pairs_go_first_come_first():
    assert merged([0] * 5, 1) == ([[0, 1], [2], [3], [4]], 0)
    assert merged([0] * 5, 3) == ([[0, 1, 2, 3], [4]], 0)
    # Cosines of 1 and of 1 - 1e-9 are alike.
    assert merged([0, 4e-5, 4e-5], 1) == ([[0, 1], [2]], 0)


def test_a_descriptor_points_where_its_mass_is():
    # The middle two merge first; which end is nearer to them then depends on their weights.
    angles = [-0.58, 0, 0.3, 0.9]
    assert merged(angles, 1)[0] == [[0], [1, 2], [3]]
    assert merged(angles, 2)[0] == [[0, 1, 2], [3]]
    assert merged(angles, 2, mass=[1, 1, 1000, 1])[0] == [[0], [1, 2, 3]]


def test_near_pairs_go_before_alike_ones():
    rule = Rule(window=4)
    assert merged([0, 0, 1, 2], 1, rule, at=[0, 10, 12, 14]) == ([[0], [1, 2], [3]], 0)
    # A span's end counts, not its beginning: 4 to 8 is near once 0 and 4 are one.
    assert merged([0, 0, 1.5, 1.4], 2, rule, at=[0, 4, 8, 30]) == ([[0, 1, 2], [3]], 0)


def test_the_least_cosine_forbids():
    assert merged([0, 3, 0, 3], 3) == ([[0, 1, 2, 3]], 0)
    assert merged([0, 0.1, 0.5, 0.6], 3, Rule(32, cosine=0.985)) == ([[0, 1], [2, 3]], 1)
    assert merged([0, 0.1, 0.5, 0.6], 3, Rule(32, cosine=0.999)) == ([[0], [1], [2], [3]], 3)
    # What stands for several points elsewhere than each of them.
    assert merged([0, 0.3, 0.6], 2, Rule(32, cosine=0.95)) == ([[0, 1], [2]], 1)


def test_runs_are_never_crossed():
    link = [True, False, True, False]
    assert merged([0] * 4, 3, link=link) == ([[0, 1], [2, 3]], 1)
    assert merged([0] * 4, 3, link=[False] * 4) == ([[0], [1], [2], [3]], 3)


def test_the_gate_limits_the_sum_of_scores():
    rule = Rule(32, gate=torch.tensor([2.0], dtype=torch.float64))
    assert merged([0] * 4, 3, rule, score=[1.0] * 4) == ([[0, 1], [2, 3]], 1)
    assert merged([0] * 4, 3, rule, score=[1.5, 1.5, 0.5, -1]) == ([[0], [1, 2, 3]], 1)


def test_the_distance_limits_how_far_values_are_apart():
    values = [[0.0, 0.0], [3.0, 4.0], [3.0, 4.5], [3.0, 5.2]]
    assert merged([0] * 4, 3, Rule(32, distance=1.0), values=values) == ([[0], [1, 2, 3]], 1)
    assert merged([0] * 4, 3, Rule(32, distance=0.6), values=values) == ([[0], [1, 2], [3]], 2)
    assert merged([0] * 4, 3, Rule(32, distance=6.0), values=values) == ([[0, 1, 2, 3]], 0)


def test_zero_keys_resemble_nothing():
    scratch = Scratch(*(torch.zeros(1, 3, 2, dtype=torch.float64), *torch.ones(4, 1, 3, dtype=torch.float64)))
    link = torch.tensor([[True, True, False]])
    got = merge_adjacent(scratch, torch.ones(1, 3, dtype=torch.bool), link, torch.tensor([1]), ANY)
    assert got.starts.tolist() == [[True, False, True]]


@pytest.mark.parametrize("veto", [{}, {"gate": 1.2}, {"distance": 2.0}, {"cosine": 0.5}])
@pytest.mark.parametrize("window", [None, 0, 3])
def test_equals_looking_at_all_pairs_again_after_every_merge(veto, window):
    """Rows of realistic length, with runs, spans and masses, against the plain oracle."""
    g = torch.Generator().manual_seed(len(veto) + (window or 0))
    rows, width, dim = 4, 48, 6
    direction = torch.randn(5, dim, generator=g)[torch.randint(5, (rows, width), generator=g)]
    direction = direction + 0.4 * torch.randn(direction.shape, generator=g)
    member = torch.rand(rows, width, generator=g) < 0.85
    following = torch.cat([member[:, 1:], torch.zeros(rows, 1, dtype=torch.bool)], 1)
    link = member & following & (torch.rand(rows, width, generator=g) < 0.9)
    mass = torch.rand(rows, width, generator=g).double() * 3 + 1e-4
    score = torch.randn(rows, width, generator=g).double()
    low = torch.randint(1, 6, (rows, width), generator=g).cumsum(-1)
    high = low + torch.randint(0, 2, (rows, width), generator=g)
    values = torch.randn(rows, width, 3, 2, generator=g)
    merges = torch.tensor([5, 0, 25, 48]).minimum(member.sum(-1))
    gate = torch.full((rows,), veto["gate"]).double() if "gate" in veto else None
    rule = Rule(window, gate, veto.get("distance", 0.0), veto.get("cosine", -math.inf))
    absent = ~member.unsqueeze(-1)
    scratch = Scratch(direction.masked_fill(absent, math.nan), mass, score, low, high, values)
    got = merge_adjacent(scratch, member, link, merges, rule)
    for r in range(rows):
        case = {
            "candidates": member[r].nonzero().flatten().tolist(),
            "phase": [0, *(~link[r, :-1]).long().cumsum(0).tolist()],
            "mass": mass[r].tolist(),
            "s": score[r].tolist(),
            "u": direction[r].tolist(),
            "low": low[r].tolist(),
            "high": high[r].tolist(),
            "values": values[r].movedim(1, 0).tolist(),
            "mean_best": 1.0,
            "rule": {
                "gate": veto.get("gate", 0.0),
                "distance": rule.distance,
                "local_window": math.inf if window is None else window,
                "similarity": veto.get("cosine", -2.0),
                "similarity_role": "forbid" if "cosine" in veto else "rank",
            },
        }
        oracle = cask_oracle.Groups(case, set(), True, "gate" in veto)
        target = len(oracle.groups) - int(merges[r])
        oracle.reduce(target)
        assert got.starts[r].nonzero().flatten().tolist() == [group[0] for group in oracle.groups]
        assert int(got.short[r]) == len(oracle.groups) - target
        for group in oracle.groups:
            assert float(got.mass[r, group[0]]) == pytest.approx(oracle.mass(group))
            assert int(got.low[r, group[0]]) == min(case["low"][j] for j in group)
            assert int(got.high[r, group[0]]) == max(case["high"][j] for j in group)


def test_tensors_that_are_transferred_together_stay_as_they_are():
    """Any shape, number type and value; the largest position and the smallest float are what fp64 must hold."""
    tensors = [
        torch.tensor([[True, False], [False, True]]),
        torch.tensor([[1, -1], [2**53, 7]]),
        torch.tensor([[1e-38, torch.inf, 0.1], [-torch.inf, 3.4e38, -0.0]]),
        torch.tensor([0.1, 1e-300], dtype=torch.float64),
        torch.zeros(2, 0, dtype=torch.int64),
    ]
    for before, after in zip(tensors, transferred("cpu", *tensors), strict=True):
        assert torch.equal(before, after) and before.dtype == after.dtype


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_rows_together_equal_rows_alone(angles, data):
    """Rows of unequal length, unequal runs and unequal numbers of merges, next to each other and alone."""
    other = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    rows = [angles, other]
    links = [data.draw(st.lists(st.booleans(), min_size=len(r) - 1, max_size=len(r) - 1)) for r in rows]
    merges = [data.draw(st.integers(0, len(r))) for r in rows]
    alone = [merged([a * 0.1 for a in r], m, link=[*k, False]) for r, m, k in zip(rows, merges, links, strict=True)]
    width = max(map(len, rows))
    angle = torch.zeros(2, width, dtype=torch.float64)
    member, link = torch.zeros(2, width, dtype=torch.bool), torch.zeros(2, width, dtype=torch.bool)
    for i, (r, k) in enumerate(zip(rows, links, strict=True)):
        angle[i, : len(r)] = torch.tensor(r).double() * 0.1
        member[i, : len(r)] = True
        link[i, : len(k)] = torch.tensor(k, dtype=torch.bool)
    # What is no member may hold anything.
    direction = torch.stack([angle.cos(), angle.sin()], -1).masked_fill(~member.unsqueeze(-1), torch.nan)
    at = torch.arange(width).expand(2, width)
    scratch = Scratch(direction, torch.ones(2, width).double(), torch.zeros(2, width).double(), at, at)
    got = merge_adjacent(scratch, member, link, torch.tensor(merges), ANY)
    for i, (groups, short) in enumerate(alone):
        assert got.starts[i].nonzero().flatten().tolist() == [g[0] for g in groups]
        assert int(got.short[i]) == short


# -- the core ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.data())
@settings(max_examples=120, deadline=None)
def test_room_counts_runs(n, data):
    order = torch.tensor([data.draw(st.permutations(range(n)))])
    slots = data.draw(st.integers(1, n))
    spare = data.draw(st.integers(0, 3))
    padded = torch.cat([order, torch.arange(n, n + spare)[None]], 1)
    valid = torch.arange(n + spare) < n
    got = room(padded, valid[None], torch.tensor([slots]))[0].tolist()
    for k in range(n + 1):
        rest = sorted(order[0, k:].tolist())
        runs = sum(j - 1 not in rest for j in rest)
        assert got[k] == (runs <= slots - k)
    assert got[0]
    size = data.draw(st.integers(0, n))
    assert int(largest(torch.tensor([got]), torch.tensor([size]))) == max(k for k in range(size + 1) if got[k])


def test_votes_come_before_scores_and_scores_before_positions():
    heads = torch.tensor([[3.0, 2, 1, 0], [0, 3, 2, 1], [0, 3, 1, 2]]).view(1, 1, 1, 3, 4)
    valid = torch.ones(1, 4, dtype=torch.bool)
    ballots = votes(heads, valid, torch.tensor([2]))
    assert ballots.tolist() == [[1, 3, 1, 1]]
    assert ranking(torch.tensor([[5.0, 1, 9, 9]]), valid, ballots).tolist() == [[1, 2, 3, 0]]
    assert ranking(torch.tensor([[5.0, 1, 9, 9]]), valid).tolist() == [[2, 3, 0, 1]]
    few = torch.tensor([[True, True, False, True]])
    assert votes(heads, few, torch.tensor([1])).tolist() == [[1, 2, 0, 0]]
    assert ranking(torch.tensor([[5.0, 1, 9, 9]]), few).tolist() == [[3, 0, 1, 2]]


def test_votes_in_pieces_are_the_same(monkeypatch):
    heads = torch.randn(5, 2, 2, 2, 9, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(9) < torch.tensor([[9], [6]])
    whole = votes(heads, valid, torch.tensor([4, 2]))
    monkeypatch.setattr("cask_methods.selectors.core._CHUNK_ELEMENTS", 1)
    assert torch.equal(votes(heads, valid, torch.tensor([4, 2])), whole)
    assert whole.sum(-1).tolist() == [4 * 20, 2 * 20]


def test_promotion_fills_up_to_one_free_slot():
    scores, valid = torch.tensor([[9.0, 4, 8, 7, 3]]), torch.ones(1, 5, dtype=torch.bool)
    order = ranking(scores, valid)
    for slots, ratio, want in ((5, 0.75, [0, 2, 3]), (3, 0.75, [0, 2]), (5, 0.1, [0, 2, 3, 1]), (5, 1.0, [0])):
        got, size = promote(order, torch.tensor([1]), scores, valid, torch.tensor([slots]), ratio)
        assert got[0, : int(size)].tolist() == want
    # No core, no measure of nearness.
    assert promote(order, torch.tensor([0]), scores, valid, torch.tensor([5]), 0.1)[1].tolist() == [0]
