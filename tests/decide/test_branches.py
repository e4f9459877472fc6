from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.decide.branches import FIELDS, check, decide, holds, matches
from cask_eval.protocol.model import Branch


def branches(*specs) -> list[Branch]:
    """Each spec is a dict of conditions, or None for `otherwise`; they are named A, B, …"""
    out = []
    for name, when in zip("ABCDEFGH", specs):
        given = {"otherwise": True} if when is None else {"when": when}
        out.append(Branch.model_validate({"name": name, "decision": f"do {name}", **given}))
    return out


ALPHA = branches(
    {"positive_cells": ">=1", "negative_cells": "==0"}, {"positive_cells": ">=1", "negative_cells": ">=1"}, None
)


@pytest.mark.parametrize(
    "condition, yes, no",
    [(">=2", [2, 3], [1]), ("<=2", [0, 2], [3]), ("==2", [2], [1, 3]), ("!=2", [1, 3], [2]), (">2", [3], [2]),
     ("< 2", [1], [2])],
)  # fmt: skip
def test_conditions(condition, yes, no):
    assert all(holds(condition, n) for n in yes)
    assert not any(holds(condition, n) for n in no)


def test_a_condition_that_is_none_is_refused():
    with pytest.raises(ValueError, match="condition"):
        holds("=>1", 1)


@pytest.mark.parametrize("counts, name", [((1, 0, 0), "A"), ((2, 1, 0), "B"), ((0, 0, 0), "C"), ((0, 4, 0), "C")])
def test_first_match_decides(counts, name):
    assert decide(ALPHA, (*counts, 0)).name == name
    assert check(ALPHA, 4) == []


def test_void_cells_can_be_asked_for():
    listed = branches({"void_cells": ">0"}, {"positive_cells": ">=1"}, None)
    assert decide(listed, (2, 0, 1, 0)).name == "A"
    assert decide(listed, (2, 0, 0, 0)).name == "B"


def test_uncovered_outcome_is_an_error():
    with pytest.raises(ValueError, match="no branch covers"):
        decide(ALPHA[:2], (0, 1, 0, 0))


@pytest.mark.parametrize(
    "specs, m, names, words",
    [
        (({"positive_cells": ">=1"}, {"positive_cells": "==0"}), 2, [], "no branch says `otherwise"),
        (({"positive_cells": ">=1"}, None, None), 2, ["'B'", "'C'"], "keep one"),
        ((None, {"positive_cells": ">=1"}), 2, ["'A'"], "not last"),
        (({"positive_cells": ">=5"}, None), 4, ["'A'"], "never hold together among 4 comparisons"),
        (({"positive_cells": ">=3", "negative_cells": ">=2"}, None), 4, ["'A'"], "never hold together"),
        (({"positive_cells": "<0"}, None), 4, ["'A'"], "never hold together"),
        (({"positive_cells": ">=1"}, {"positive_cells": ">=2"}, None), 4, ["'B'", "'A'"], "taken by"),
        (({"positive_cells": ">=1"}, {"negative_cells": ">=0"}, None), 4, ["'C'"], "taken by 'A', 'B'"),
    ],
    ids=["none", "two", "first", "too many", "sum", "contradiction", "shadowed", "dead end"],
)
def test_each_fault_names_the_branch(specs, m, names, words):
    problems = check(branches(*specs), m)
    assert len(problems) == 1
    assert words in problems[0]
    assert all(name in problems[0] for name in names)


def test_reachability_depends_on_the_number_of_cells():
    listed = branches({"positive_cells": ">=3", "negative_cells": ">=2"}, None)
    assert check(listed, 4)
    assert not check(listed, 5)


signs = st.sampled_from([">=", "<=", "==", "!=", ">", "<"])
conditions = st.builds(lambda sign, n: f"{sign}{n}", signs, st.integers(0, 5))
whens = st.dictionaries(
    st.sampled_from(FIELDS), conditions, min_size=1, max_size=4
)


@given(st.lists(whens, min_size=1, max_size=4), st.integers(1, 5))
def test_reachability_equals_trying_every_outcome(specs, m):
    listed = branches(*specs, None)
    every = product(range(m + 1), repeat=4)
    possible = [o for o in every if sum(o[:3]) <= m and o[2] + o[3] <= m]
    taken = {next(b.name for b in listed if matches(b, o)) for o in possible}
    unreachable = {b.name for b in listed} - taken
    assert {p.split("'")[1] for p in check(listed, m)} == unreachable


def test_a_large_family_is_checked_at_once():
    assert check(ALPHA, 100_000) == []
