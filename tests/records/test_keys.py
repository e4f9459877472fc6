"""Keys by columns: what lists, sets and sorting of the keys themselves say, in a few bytes each."""

import gc
import itertools
import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from cask_eval.protocol.keys import Grid
from cask_eval.records.keys import Keys, KeySet, Names

TEXTS = st.sampled_from(["", "a", "b", "aa", "ä", "a/b"])
KEYS = st.tuples(st.sampled_from(["dev", "heldout"]), TEXTS, TEXTS, TEXTS, TEXTS, st.sampled_from([0, 1, 7, 2**53 - 1]))


@given(st.lists(KEYS, max_size=30), st.integers(0, 5))
def test_keys_are_what_was_added_and_sort_as_they_do(given, first):
    names = Names()
    Keys(reversed(given), names)  # in whatever order the names come
    for keys in (Keys(given), Keys(given, names)):
        assert list(keys) == keys[:] == given and len(keys) == len(given)
        expected = sorted(range(len(given))[first:], key=lambda i: (given[i], i))
        assert keys.order(first).tolist() == expected


@given(st.lists(KEYS, max_size=30), st.lists(KEYS, max_size=30))
def test_a_set_of_keys_is_a_set(given, others):
    keys = KeySet()
    assert [keys.add(key) for key in given] == [key not in given[:i] for i, key in enumerate(given)]
    assert keys == set(given) and len(list(keys)) == len(keys) == len(set(given))
    assert [key in keys for key in others] == [key in given for key in others]


def test_a_set_of_keys_goes_beyond_a_block():
    problems = [f"p{i}" for i in range(1300)]
    random.Random(1).shuffle(problems)
    keys = KeySet(("dev", "c", "a", "", p, s) for p in problems for s in (0, 1))
    assert keys == {("dev", "c", "a", "", p, s) for p in problems for s in (0, 1)}
    assert ("dev", "c", "a", "", problems[700], 2) not in keys and ("dev", "c", "b", "", problems[700], 0) not in keys


PLACES = st.lists(st.tuples(*[st.sampled_from(["a", "b", "ab"])] * 4), max_size=4).map(tuple)


@given(PLACES, st.lists(TEXTS, max_size=4).map(tuple), st.integers(1, 3))
def test_a_grid_is_its_list_of_keys(places, problems, samples):
    """With places and problems that come twice too: a verifier is given such manifests."""
    grid = Grid(places, problems, samples)
    keys = [(*place, p, s) for place, p, s in itertools.product(places, problems, range(samples))]
    assert list(grid) == grid[:] == keys and len(grid) == len(keys)
    assert [grid[i] for i in range(-len(keys), len(keys))] == keys + keys
    assert list(grid.in_order()) == sorted(keys)
    assert all(key in grid for key in keys)
    assert ("a", "b", "a", "c", "a", 0) not in grid and ("a", "a", "a", "a", "zz", 0) not in grid
    assert not keys or (*keys[0][:5], samples) not in grid


def test_a_key_takes_few_bytes():
    def each():
        for place, problem, sample in itertools.product(range(20), range(500), range(5)):
            yield ("heldout", f"cell{place}", "arm", "", f"problem-{problem}", sample)

    count = 20 * 500 * 5
    for make, most in ((Keys, 20), (KeySet, 8)):
        gc.collect()
        tracemalloc.start()
        found = make(each())
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == count and size < most * count
