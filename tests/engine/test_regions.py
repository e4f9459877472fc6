"""Region statistics against counting positions one by one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cask_eval.engine.regions import BIN, Regions, wiped


def counted(survivors: list[int], length: int) -> tuple[int, int, int]:
    bins = range(-(-length // BIN))
    empty = sum(not any(p // BIN == b for p in survivors) for b in bins)
    alive = set(survivors)
    longest = run = 0
    for p in range(length):
        run = 0 if p in alive else run + 1
        longest = max(longest, run)
    return len(bins), empty, longest


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bins_and_runs_are_those_of_a_plain_count(data):
    layers, heads = 2, 2
    lengths = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=3))
    n = data.draw(st.integers(1, 40))
    positions = torch.full((layers, len(lengths), heads, n), -1)
    keep = torch.zeros_like(positions, dtype=torch.bool)
    want = [[0, 0, 0] for _ in lengths]
    for r, length in enumerate(lengths):
        for layer in range(layers):
            for head in range(heads):
                held = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=n)))
                positions[layer, r, head, : len(held)] = torch.tensor(held)
                kept = [p for p in held if data.draw(st.booleans())]
                keep[layer, r, head] = torch.isin(positions[layer, r, head], torch.tensor(kept, dtype=torch.int64))
                bins, empty, longest = counted(kept, length)
                want[r] = [want[r][0] + bins, want[r][1] + empty, max(want[r][2], longest)]
    got = wiped(positions, keep, torch.tensor(lengths), torch.zeros(len(lengths), 3, dtype=torch.int64))
    assert got.tolist() == want


def test_events_add_up_and_the_longest_run_is_kept():
    positions = torch.tensor([[[[0, 70, 199]]]])
    keep = torch.tensor([[[[True, False, True]]]])
    once = wiped(positions, keep, torch.tensor([200]), torch.zeros(1, 3, dtype=torch.int64))
    assert Regions(*once[0].tolist()) == Regions(bins=4, empty=2, longest=198)
    twice = wiped(positions, torch.ones_like(keep), torch.tensor([200]), once)
    assert Regions(*twice[0].tolist()) == Regions(bins=8, empty=3, longest=198)
