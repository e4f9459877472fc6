"""The rule by which a set becomes a dev and a held-out part."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.tasks import Problem
from cask_eval.tasks.part import cut, rule

STRATA = st.lists(st.sampled_from("abcde"), min_size=2, max_size=60)


def problems(strata):
    return [Problem(f"p{i}", f"question {i}", "1", s) for i, s in enumerate(strata)]


@given(STRATA, st.data(), st.integers(0, 9))
def test_parts_are_disjoint_complete_in_order_and_proportional(strata, drawn, seed):
    made = problems(strata)
    size = drawn.draw(st.integers(1, len(made) - 1))
    params = {"dev": size, "seed": seed}
    dev, held = cut(made, {**params, "part": "dev"}), cut(made, {**params, "part": "heldout"})
    assert len(dev) == size and len(dev) + len(held) == len(made)
    assert sorted(dev + held, key=made.index) == made
    assert dev == sorted(dev, key=made.index) and held == sorted(held, key=made.index)
    count, every = Counter(p.stratum for p in dev), Counter(strata)
    assert all(abs(count[s] - Fraction(n * size, len(made))) < 1 for s, n in every.items())


def test_the_rule_is_pinned():
    """By `printf 1/p0 | sha256sum` and so on, p1 has the smallest digest of the first three, p3 of the others."""
    assert [p.id for p in cut(problems("aaabbb"), {"part": "dev", "dev": 2, "seed": 1})] == ["p1", "p3"]
    # 2·3/5 = 1.2 and 2·2/5 = 0.8: the seat that is left goes to the larger remainder; 1.5 and 0.5: to the first name.
    assert Counter(p.stratum for p in cut(problems("aaabb"), {"part": "dev", "dev": 2, "seed": 1})) == {"a": 1, "b": 1}
    assert Counter(p.stratum for p in cut(problems("aaab"), {"part": "dev", "dev": 2, "seed": 1})) == {"a": 2}


def test_another_seed_draws_others():
    made = problems("a" * 50)
    assert cut(made, {"part": "dev", "dev": 10, "seed": 1}) != cut(made, {"part": "dev", "dev": 10, "seed": 2})


def test_what_is_no_part_is_refused():
    made = problems("abab")
    for params in ({"part": "test"}, {"part": "dev", "seed": 1}, {"part": "dev", "dev": 4, "seed": 1},
                   {"part": "dev", "dev": 0, "seed": 1}, {"part": "dev", "dev": 2, "seed": -1},
                   {"part": "dev", "dev": True, "seed": 1}):  # fmt: skip
        with pytest.raises(ValueError, match="part|dev|seed"):
            cut(made, params)


def test_the_rule_in_words_has_its_numbers():
    said = rule({"part": "dev", "dev": 7, "seed": 3})
    assert "D = 7, SEED = 3; this is the dev part" in said and '"SEED/ID"' in said
    assert rule({}) == "All problems, in file order."


@given(STRATA, st.data())
def test_what_is_taken_of_a_part_is_cut_like_a_deck(strata, drawn):
    made = problems(strata)
    size = drawn.draw(st.integers(1, len(made) - 1))
    params = {"part": "dev", "dev": size, "seed": 3}
    skip = drawn.draw(st.integers(0, size - 1))
    take = drawn.draw(st.integers(1, size - skip))
    whole = cut(made, params)
    some, first = cut(made, {**params, "skip": skip, "take": take}), cut(made, {**params, "take": take})
    assert len(some) == len(first) == take and some == [p for p in whole if p in some]
    if skip >= take:
        assert not set(some) & set(first)
    assert cut(made, {**params, "take": size}) == whole


def test_taking_needs_a_part_and_enough_of_it():
    made = problems("abababab")
    part = {"part": "dev", "dev": 4, "seed": 1}
    for params, what in (({"take": 2}, "needs a part"), ({**part, "skip": 1}, "skip needs take"),
                         ({**part, "take": 5}, "more than the 4"), ({**part, "take": 2, "skip": 3}, "more than the 4"),
                         ({**part, "take": 0}, "take is 0")):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            cut(made, params)
    assert 'SHA-256 of "SEED/take/ID", only 2 problems after the first 1' in rule({**part, "take": 2, "skip": 1})
