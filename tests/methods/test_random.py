import dataclasses

import pytest
import torch
from cask_methods.scorers.random import RandomScorer, _mix, counter_uniform
from cask_methods.selectors.top_k import TopK
from method_cases import entries, geometry, single
from scipy.stats import chi2


def test_mixer_is_splitmix64():
    """The first outputs of the reference generator for seed 1234567."""
    golden, state, got = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        got.append(int(_mix(torch.tensor(state - (1 << 64) if state >> 63 else state))) % (1 << 64))
        state = (state + golden) % (1 << 64)
    assert got == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_every_key_matters():
    base = [torch.tensor([x]) for x in (3, 1, 4, 1, 5)]
    first = counter_uniform(*base)
    for i in range(5):
        assert counter_uniform(*base[:i], base[i] + 1, *base[i + 1 :]) != first


@pytest.mark.parametrize("sampling", ["thinning", "reservoir"])
def test_same_key_same_score_in_any_batch(sampling):
    e = entries(geometry())
    scorer = RandomScorer(sampling)
    batch = scorer.score(e, e.positions >= 0)
    for r in range(3):
        alone = single(e, r)
        n = alone.positions.shape[-1]
        assert torch.equal(scorer.score(alone, alone.positions >= 0)[:, 0], batch[:, r, :, :n])
    assert len(batch[:, 0].unique()) == batch[:, 0].numel()  # layers, heads and positions all draw their own


def test_events_redraw_under_thinning_only():
    e = entries(geometry(), events=(0, 0, 0))
    later = dataclasses.replace(e, events=e.events + 1)
    live = e.positions >= 0
    assert not torch.equal(RandomScorer().score(e, live), RandomScorer().score(later, live))
    fixed = RandomScorer("reservoir")
    assert torch.equal(fixed.score(e, live), fixed.score(later, live))


def _kept(rows, n, quota, sampling, event=0, resident=None):
    """Kept positions of `rows` trials with one layer and head."""
    e = entries(
        geometry(layers=1, kv_heads=1, head_dim=2),
        lengths=(n,) * rows,
        prompts=(0,) * rows,
        scattered=False,
        events=(event,) * rows,
        junk=False,
    )
    mask = torch.ones(1, rows, 1, n, dtype=torch.bool) if resident is None else resident
    return TopK().select(RandomScorer(sampling).score(e, mask), mask, torch.full((1, rows, 1), quota), e).keep


def test_inclusion_is_uniform():
    rows, n, quota = 4000, 12, 5
    counts = _kept(rows, n, quota, "thinning").sum(1).flatten().double()
    p = quota / n
    # Counts of a fixed-size sample are negatively correlated; (n − 1)/n of the usual variance makes it χ² with n − 1.
    statistic = ((counts - rows * p) ** 2).sum() / (rows * p * (1 - p)) * (n - 1) / n
    assert chi2.sf(float(statistic), n - 1) > 1e-3


def test_reservoir_is_uniform_over_age_and_thinning_is_not():
    rows, n, quota, events = 1500, 40, 8, 8
    kept = {}
    for sampling in ("thinning", "reservoir"):
        resident = torch.zeros(1, rows, 1, n, dtype=torch.bool)
        for event in range(events):
            resident[..., event * 5 : event * 5 + 5] = True
            quota_now = min(quota, (event + 1) * 5)
            resident = _kept(rows, n, quota_now, sampling, event, resident.clone())
        kept[sampling] = resident.double().mean(1).view(2, -1).mean(-1)  # old half, new half
    assert kept["reservoir"][0] == pytest.approx(quota / n, abs=0.01)
    assert kept["thinning"][1] > 4 * kept["thinning"][0]
