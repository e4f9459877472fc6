"""Events at the ends of steps: the schedule, its tokens, and when it fires."""

import pytest
import torch
from cask_methods.cadences.at_boundaries import AtBoundaries
from cask_methods.cadences.slack import Slack
from cask_methods.presets.tri_boundaries import TriBoundaries
from cask_methods.presets.triattention import TriAttention
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, statistics

from cask_eval.engine.contract import Host
from cask_eval.errors import MethodError
from cask_eval.schedule import Book

WORDS = {"\n": 5, "\n\n": 6, ".\n": 7, ".": 8, "a": 9}


def words(text):
    """A vocabulary of a few texts; the rest goes letter by letter."""
    return [WORDS[text]] if text in WORDS else [100 + ord(c) for c in text]


def spaced(text):
    """As some vocabularies do, a space goes before the first word."""
    return [1, *(WORDS.get(c, 100 + ord(c)) for c in text)]


def unknowing(text):
    """A vocabulary of words: what it lacks is token 3."""
    return [8 if part == "." else 3 for part in text.split()]


def test_delimiters_are_found_in_the_vocabulary():
    find = AtBoundaries(1, 8, "\n|\n\n|.\n|.\n\n").boundaries
    assert find(words) == (5, 6, 7)
    assert find(spaced) == (5,)
    assert find(unknowing) == (8,)
    assert AtBoundaries(1, 8, "||.|").boundaries(words) == (8,)


@pytest.mark.parametrize("text", ["", "|", "xyz", ".\n\n"])
def test_delimiters_that_are_no_tokens_are_refused(text):
    with pytest.raises(MethodError, match="none of the delimiters"):
        AtBoundaries(1, 8, text).boundaries(words)
    with pytest.raises(MethodError, match="none of the delimiters"):
        TriBoundaries(delimiters=text).schedule(64, words)


def test_an_unknown_word_is_no_boundary():
    with pytest.raises(MethodError, match="none of the delimiters"):
        AtBoundaries(1, 8, ";|,").boundaries(unknowing)


@pytest.mark.parametrize("params", [{}, {"prompt": "outside"}, {"count_prompt": False}, {"overflow": "first"}])
@pytest.mark.parametrize("delta, earliest", [(256, 0), (128, 0), (16, 0), (1, 0), (128, 128), (4, 4)])
@pytest.mark.parametrize("encode", [None, words])
def test_the_null_setting_is_triattentions_schedule(params, delta, earliest, encode):
    ours = TriBoundaries.make("tri_boundaries", {**params, "delta": delta, "earliest": earliest})
    theirs = TriAttention.make("triattention", {**params, "delta": delta})
    assert ours.schedule(64, encode) == theirs.schedule(64, encode)
    assert not ours.schedule(64, encode).content_driven
    assert AtBoundaries(earliest, delta, "\n").schedule(64, "pinned") == Slack(delta).schedule(64, "pinned")


@pytest.mark.parametrize("delta", [16, 128, 256])
def test_the_documented_null_is_the_reference_at_every_delta(delta):
    null = TriBoundaries.parameters()["earliest"].metadata["null"]
    ours = TriBoundaries.make("tri_boundaries", {"delta": delta, "earliest": null})
    assert ours.schedule(64, words) == TriAttention(delta=delta).schedule(64, words)


def test_a_boundary_later_than_the_latest_step_is_refused():
    with pytest.raises(MethodError, match="tri_boundaries: parameter earliest is 17; .* at most delta, which is 16"):
        TriBoundaries.make("tri_boundaries", {"delta": 16, "earliest": 17})
    with pytest.raises(MethodError, match="earliest is 64"):  # the default
        TriBoundaries.make("tri_boundaries", {"delta": 16})
    with pytest.raises(ValueError, match="earliest is 17"):
        AtBoundaries(17, 16, ".").schedule(64, "pinned")


def test_the_schedule_carries_what_the_reference_has():
    made = TriBoundaries(count_prompt=False, overflow="first", delta=9, earliest=2).schedule(64, words)
    assert made.trigger == "boundary" and made.content_driven
    assert (made.budget, made.delta, made.earliest, made.boundaries) == (64, 9, 2, (5, 6, 7))
    assert (made.prompt, made.count_prompt, made.overflow) == ("pinned", False, "first")
    assert TriBoundaries().schedule(64).boundaries == ()
    assert AtBoundaries(2, 9, ".").schedule(64, "outside", words).boundaries == (8,)


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 6), st.sampled_from(["pinned", "outside"]),
    st.lists(st.sampled_from([5, 6, 7, 50, 51]), min_size=1, max_size=80),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_fires_at_the_first_delimiter_and_never_late(delta, earliest, prompt, policy, tokens):
    earliest = min(earliest, delta)
    made = TriBoundaries(delta=delta, earliest=earliest, prompt=policy).schedule(8, words)
    book = Book(made, prompt)
    target = 8 + prompt * (policy == "outside")
    resident = prompt
    for token in tokens:
        resident += 1
        book.grow()
        over = resident - target
        fires = over >= delta or (over >= earliest and token in (5, 6, 7))
        assert book.due(token) == fires
        if fires:
            book.fire()
            resident = target
        assert book.resident == resident and resident < target + delta


def test_an_event_is_triattentions_own(tmp_path):
    geo = geometry()
    statistics(geo).save(tmp_path / "s.safetensors")
    host = Host(geo, str(tmp_path / "s.safetensors"), words)
    e, target = entries(geo), torch.tensor([12, 9, 6])
    want = TriAttention().bind(host).compress(e, target).keep
    assert torch.equal(TriBoundaries().bind(host).compress(e, target).keep, want)
    assert TriBoundaries().bind(host).schedule(64).boundaries == (5, 6, 7)


@pytest.mark.parametrize(
    "params, says", [({"trigger": "periodic"}, "use one of slack"), ({"earliest": -1}, "at least")]
)
def test_parameters_are_checked(params, says):
    with pytest.raises(MethodError, match=says):
        TriBoundaries.make("tri_boundaries", params)
