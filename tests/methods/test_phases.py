"""Phase ids against a loop over prefixes, and the markers of a tokenizer."""

import cask_oracle
import torch
from cask_methods.phases import TEXTS, markers, phase_ids
from hypothesis import given, settings
from hypothesis import strategies as st


def test_markers_are_each_tokenised_once():
    asked = []

    def encode(text):
        asked.append(text)
        return {"\n": [1], "\n\n": [1, 1], "So": [4], " So": [4]}.get(text, [])

    assert markers(encode) == ((1,), (1, 1), (4,))
    assert asked == list(TEXTS) and {"\n", "\n\n", "Therefore", " Therefore", "So", " So", "Hence", " Hence"} == set(
        asked
    )


def test_a_phase_begins_after_its_marker():
    tokens = torch.tensor([[1, 9, 9, 1, 9, 5, 6, 9]])
    # The prompt's own line break counts for nothing.
    assert phase_ids(tokens, torch.tensor([2]), ((1,), (5, 6))).tolist() == [[0, 0, 0, 0, 1, 1, 1, 2]]


def test_a_marker_that_began_in_the_prompt_does_not_count():
    tokens = torch.tensor([[9, 5, 6, 9, 5, 6, 9]])
    assert phase_ids(tokens, torch.tensor([2]), ((5, 6),)).tolist() == [[0, 0, 0, 0, 0, 0, 1]]


def test_markers_that_end_together_count_once():
    tokens = torch.tensor([[1, 1, 9]])
    assert phase_ids(tokens, torch.tensor([0]), ((1,), (1, 1))).tolist() == [[0, 1, 2]]


def test_sequences_shorter_than_a_marker_have_one_phase():
    assert phase_ids(torch.tensor([[1, 2]]), torch.tensor([0]), ((1, 2, 3),)).tolist() == [[0, 0]]
    assert phase_ids(torch.tensor([[1, 2]]), torch.tensor([0]), ()).tolist() == [[0, 0]]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_equals_the_loop(data):
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    prompts = [data.draw(st.integers(0, n)) for n in lengths]
    marks = tuple(data.draw(st.lists(st.tuples(st.integers(0, 2)) | st.tuples(st.integers(0, 2), st.integers(0, 2)))))
    rows = [data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)) for n in lengths]
    tokens = torch.full((len(rows), max(lengths)), -1)
    for r, row in enumerate(rows):
        tokens[r, : len(row)] = torch.tensor(row)
    got = phase_ids(tokens, torch.tensor(prompts), marks)
    for r, row in enumerate(rows):
        assert got[r, : len(row)].tolist() == cask_oracle.phases(row, prompts[r], marks)
