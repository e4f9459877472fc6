"""The counting top-k against a sorted list, and to the bit against the eager path."""

import math

import pytest
import torch
from cask_methods.selectors.top_k import highest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def top_k(device):
    from cask_methods.kernels import top_k

    return top_k


def oracle(scores, candidates, quota):
    """One row: the best candidates by (score, lower index), NaN first."""
    pool = [i for i, c in enumerate(candidates) if c]
    pool.sort(key=lambda i: (0, 0, i) if math.isnan(scores[i]) else (1, -scores[i], i))
    chosen = set(pool[: max(0, quota)])
    return [i in chosen for i in range(len(scores))]


def check(top_k, scores, candidates, quota):
    assert top_k.takes(scores)
    got = top_k.highest(scores, candidates, quota)
    assert got.dtype == torch.bool and got.shape == candidates.shape
    assert torch.equal(got, highest(scores, candidates, quota))
    n = scores.shape[-1]
    flat = zip(scores.double().reshape(-1, n).tolist(), candidates.reshape(-1, n).tolist(), quota.reshape(-1).tolist())
    assert got.reshape(-1, n).tolist() == [oracle(*row) for row in flat]


ROW = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, 3.4e38])


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 70))
def test_any_row(top_k, device, data, n):
    scores = torch.tensor(data.draw(st.lists(ROW, min_size=n, max_size=n)), dtype=torch.float32, device=device)
    candidates = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), device=device)
    quota = torch.tensor(data.draw(st.integers(0, n)), device=device)
    check(top_k, scores, candidates, quota)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_quotas_that_differ_with_ties(top_k, device, n):
    g = torch.Generator().manual_seed(n)
    scores = torch.randint(-2, 3, (2, 2, 1, n), generator=g).float().to(device)
    candidates = (torch.rand(2, 2, 1, n, generator=g) < 0.7).to(device)
    quota = torch.tensor([[[0], [1]], [[n // 2], [n]]], device=device)
    check(top_k, scores, candidates, quota)
    check(top_k, torch.zeros_like(scores), candidates, quota)
    check(top_k, scores, torch.zeros_like(candidates), quota)


def test_views_and_one_quota_for_all(top_k, device):
    scores = torch.randn(2, 3, 2, 40, generator=torch.Generator().manual_seed(0)).to(device).transpose(0, 2)[..., ::2]
    candidates = torch.ones(2, 3, 2, 20, dtype=torch.bool, device=device)
    check(top_k, scores, candidates, torch.tensor(7, device=device).expand(2, 3, 2))


def test_highest_takes_it_when_asked(top_k, device, use, monkeypatch):
    scores = torch.randn(2, 1, 2, 20, generator=torch.Generator().manual_seed(0)).to(device)
    candidates, quota = torch.ones_like(scores, dtype=torch.bool), torch.full((2, 1, 2), 5, device=device)
    want, called = highest(scores, candidates, quota), []
    ours = top_k.highest
    monkeypatch.setattr(top_k, "highest", lambda *args: called.append(1) or ours(*args))
    use("top_k")
    assert torch.equal(highest(scores, candidates, quota), want) and called
    # Scores that the kernel does not take.
    assert torch.equal(highest(scores.double(), candidates, quota), want) and len(called) == 1
