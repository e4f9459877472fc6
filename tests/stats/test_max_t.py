"""Joint max-T against enumeration in fractions, the sign-flip test, Bonferroni, and itself with the arms exchanged."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.stats.max_t import max_t
from cask_eval.stats.pairs import Pairs
from cask_eval.stats.sign_flip import sign_flip

ALTERNATIVES = ("two-sided", "greater", "less")

families = st.tuples(st.integers(1, 4), st.integers(1, 8)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(-3, 3), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


def squares(cells, signs, alternative):
    """T², negative where S points the other way, as exact fractions, by cell."""
    out = []
    for row in cells:
        s = sum(sign * d for sign, d in zip(signs, row)) * (-1 if alternative == "less" else 1)
        side = 1 if alternative == "two-sided" or s >= 0 else -1
        out.append(side * Fraction(s * s, sum(d * d for d in row) or 1))
    return out


def enumerated(cells, alternative):
    """(single step, step down) as in Westfall & Young's algorithm 4.1, over all 2ⁿ patterns of all problems."""
    n = len(cells[0])
    observed = squares(cells, [1] * n, alternative)
    everything = [squares(cells, signs, alternative) for signs in product((1, -1), repeat=n)]
    single = [Fraction(sum(max(t) >= o for t in everything), 2**n) for o in observed]
    order = sorted(range(len(cells)), key=lambda i: -observed[i])
    step, reached = [Fraction(0)] * len(cells), Fraction(0)
    for rank, i in enumerate(order):
        share = Fraction(sum(max(t[j] for j in order[rank:]) >= observed[i] for t in everything), 2**n)
        reached = step[i] = max(reached, share)
    return [float(p) for p in single], [float(p) for p in step]


@given(families, st.sampled_from(ALTERNATIVES))
@settings(max_examples=60, deadline=None)
def test_equals_enumeration_of_all_sign_patterns(cells, alternative):
    found = max_t(cells, alternative)
    assert found.enumerated
    assert (found.single_step, found.step_down) == enumerated(cells, alternative)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=16), st.sampled_from(ALTERNATIVES))
@settings(max_examples=60, deadline=None)
def test_one_cell_is_the_sign_flip_test(row, alternative):
    found = max_t([row], alternative)
    assert found.own == found.single_step == found.step_down
    assert found.own == [sign_flip(Pairs.from_differences(row, 4), alternative)]


@given(families, st.sampled_from(ALTERNATIVES))
@settings(max_examples=60, deadline=None)
def test_order_of_severity(cells, alternative):
    found = max_t(cells, alternative)
    for own, step, single in zip(found.own, found.step_down, found.single_step):
        assert 0 < own <= step <= single <= 1


@given(families)
@settings(max_examples=40, deadline=None)
def test_exchanging_the_arms(cells):
    other = [[-d for d in row] for row in cells]
    assert max_t(other) == max_t(cells)
    assert max_t(other, "less") == max_t(cells, "greater")


@given(families, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_cells_and_problems_does_not_matter(cells, random):
    rows, columns = list(range(len(cells))), list(range(len(cells[0])))
    random.shuffle(rows)
    random.shuffle(columns)
    found, shuffled = max_t(cells), max_t([[cells[i][j] for j in columns] for i in rows])
    assert shuffled.step_down == [found.step_down[i] for i in rows]


def test_a_cells_unit_does_not_matter():
    cells = [[1, 0, 1, 1, -1, 1, 0, 1], [1, 1, 1, 0, 1, 1, -1, 0]]
    assert max_t([[7 * d for d in cells[0]], [d * Fraction(1, 3) for d in cells[1]]]) == max_t(cells)


def test_cells_that_agree_cost_nothing():
    row = [1, 1, 0, 1, 1, 1, -1, 1, 1]
    found = max_t([row, row, row])
    assert found.step_down == found.single_step == found.own == [sign_flip(Pairs.from_differences(row))] * 3


def test_cells_that_share_no_problem_cost_what_independence_costs():
    found = max_t([[1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
    assert found.single_step == pytest.approx([1 - (1 - 1 / 16) ** 2] * 2)


def test_random_patterns_agree_with_all_of_them(monkeypatch):
    from cask_eval.stats import reference

    cells = np.random.default_rng(4).integers(-2, 4, (4, 16))
    want = max_t(cells)
    monkeypatch.setattr(reference, "ENUMERATED", 10)
    got = max_t(cells, seed=3)
    assert want.enumerated and not got.enumerated
    for a, b in zip(got.step_down + got.single_step, want.step_down + want.single_step):
        assert a == pytest.approx(b, abs=4 * (b * (1 - b) / 9999) ** 0.5 + 1e-4)


def test_random_patterns_on_a_large_family_are_close_to_the_exact_marginals():
    cells = np.random.default_rng(7).integers(-4, 5, (6, 300))
    found = max_t(cells, seed=1)
    assert not found.enumerated
    for row, own in zip(cells.tolist(), found.own):
        exact = sign_flip(Pairs.from_differences(row, 4))
        assert own == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 9999) ** 0.5 + 1e-4)


def test_one_seed_gives_one_result_on_every_numpy():
    cells = [[(i * i + c * 5) % 7 - 2 for i in range(40)] for c in range(3)]
    found = max_t(cells, seed=2024, replicates=999)
    assert found == max_t(cells, seed=2024, replicates=999)
    assert [round(1000 * p) for p in found.step_down] == [1000, 41, 12]
    assert found != max_t(cells, seed=2025, replicates=999)
    assert min(max_t([[1] * 40], replicates=999).own) == 0.001  # (1 + #)/(B + 1), never 0


class TestAbsentCells:
    cells = [[1, 1, 1, 1, 1, 1, 1, 0, 1], [1, 1, 1, -1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1, 1, 1, -1]]

    def test_counts_as_one_and_stays_in_the_family(self):
        found = max_t([self.cells[0], None, self.cells[2]])
        without = max_t([self.cells[0], self.cells[2]])
        assert found.own[1] == found.single_step[1] == found.step_down[1] == 1
        for i, j in ((0, 0), (2, 1)):
            assert found.single_step[i] == pytest.approx(without.single_step[j] + without.own[j])
            assert found.step_down[i] == pytest.approx(without.step_down[j] + without.own[j])

    def test_losing_a_cell_never_makes_the_others_easier(self):
        whole = max_t(self.cells)
        for lost in range(3):
            found = max_t([None if i == lost else row for i, row in enumerate(self.cells)])
            assert all(found.single_step[i] >= whole.single_step[i] for i in range(3))
            assert all(found.step_down[i] >= whole.step_down[i] for i in range(3))

    def test_a_family_without_data_is_bonferroni(self):
        assert max_t([self.cells[0], None, None]).step_down[0] == 3 * max_t([self.cells[0]]).own[0]

    def test_members_that_are_not_listed(self):
        assert max_t(self.cells[:1], m=3).step_down == max_t([self.cells[0], None, None]).step_down[:1]

    def test_nothing_is_there(self):
        assert max_t([None, None]).step_down == [1, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: max_t([[1, 0], [1]]),
        lambda: max_t([[1, 0], [1, 0]], m=1),
        lambda: max_t([[1, 0]], "bigger"),
        lambda: max_t([[1, float("nan")]]),
        lambda: max_t([[]]),
        lambda: max_t([[1, 0]], replicates=0),
    ],
    ids=["length", "family", "alternative", "nan", "empty", "replicates"],
)
def test_refusals(call):
    with pytest.raises(ValueError):
        call()
