"""Two documents differ where their canonical forms do."""

from hypothesis import given
from hypothesis import strategies as st

from cask_eval.canonical import canonical
from cask_eval.ledger.amend import differences

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "1", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


def test_true_is_not_one():
    (found,) = differences({"options": {"think": True}}, {"options": {"think": 1}})
    assert (found.field, found.before, found.after) == ("options.think", "true", "1")
    assert [c.field for c in differences({"a": [1]}, {"a": [True]})] == ["a"]


@given(st.dictionaries(st.sampled_from("abc"), VALUES), st.dictionaries(st.sampled_from("abc"), VALUES))
def test_a_difference_is_found_exactly_where_there_is_one(before, after):
    assert bool(list(differences(before, after))) == (canonical(before) != canonical(after))
