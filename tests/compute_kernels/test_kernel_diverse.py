"""Greedy picks by the kernel against slow fp64 arithmetic, and pick for pick against the eager path."""

import dataclasses

import pytest
import torch
from cask_methods.selectors import diverse as selector
from cask_methods.selectors.diverse import PENALTIES, Diverse
from cask_methods.selectors.greedy import Rows
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry


@pytest.fixture(scope="module")
def diverse(device):
    from cask_methods.kernels import diverse

    return diverse


def rows(device, count=4, n=30, width=5, seed=0, quota=None, seeds=False, whole=False):
    """whole: scores and cosines that any order of operations computes exactly, with many ties."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (count, n), generator=g).float() if whole else torch.randn(count, n, generator=g)
    candidates = torch.rand(count, n, generator=g) < 0.8
    if whole:  # axes and their opposites, and zero
        unit = torch.eye(width)[torch.randint(width, (count, n), generator=g)]
        unit = unit * torch.randint(-1, 2, (count, n, 1), generator=g)
    else:
        unit = torch.nn.functional.normalize(torch.randn(count, n, width, generator=g), dim=-1)
    unit = unit * candidates[..., None]
    if quota is None:
        quota = torch.minimum(torch.tensor([0, 1, 7, n])[torch.arange(count) % 4], candidates.sum(-1))
    weight = torch.full((count, 1), 0.5)
    held = (torch.rand(count, n, generator=g) < 0.1) & ~candidates if seeds else None
    made = Rows(scores, candidates, quota, weight, weight, unit, int(quota.max()), held)
    return Rows(**{
        f.name: v.to(device) if torch.is_tensor(v := getattr(made, f.name)) else v for f in dataclasses.fields(made)
    })


def oracle(r, penalty):
    """Pick by pick in fp64, and the gain that each pick had over the best of the others."""
    unit, out = r.unit.double().cpu(), []
    for row in range(len(r.scores)):
        pool = set(r.candidates[row].nonzero().flatten().tolist())
        chosen = r.seeds[row].nonzero().flatten().tolist() if r.seeds is not None else []
        picks = []
        for _ in range(int(r.quota[row])):
            gains, burdens = {}, {}
            for i in pool:
                like = [max(0.0, float(unit[row, i] @ unit[row, j])) for j in chosen]
                m = (max(like) if penalty == "max" else sum(like)) if like else 0.0
                burdens[i] = m / max(1, len(chosen)) if penalty == "mean" else m
                gains[i] = float(r.scores[row, i]) - burdens[i] * float(r.weight[row])
            picks.append((gains, burdens))
            best = min(pool, key=lambda i: (-gains[i], i))
            # Follow what was picked; whether it was right is judged by its gain.
            yielded = yield row, picks[-1], best
            pool.remove(yielded)
            chosen.append(yielded)
    return out


def check(r, order, burden, penalty, exact):
    walk, taken = oracle(r, penalty), [0] * len(r.scores)
    try:
        row, (gains, burdens), best = next(walk)
        while True:
            step = taken[row]
            pick = int(order[row, step])
            assert pick in gains
            if exact:
                assert pick == best
            assert gains[pick] >= gains[best] - 1e-5
            assert abs(float(burden[row, step]) - burdens[pick]) <= 1e-5
            taken[row] += 1
            row, (gains, burdens), best = walk.send(pick)
    except StopIteration:
        assert taken == r.quota.tolist()


def both(r, gram, penalty, use):
    use("")
    eager = selector._one_by_one(r, penalty, gram)
    use("diverse")
    ours = selector._one_by_one(r, penalty, gram)
    return ours, eager


@pytest.mark.parametrize("seeds", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("gram", [True, False])
def test_picks(diverse, device, use, gram, penalty, seeds):
    for whole in (True, False):
        r = rows(device, seeds=seeds, whole=whole, seed=3)
        assert diverse.takes(r.scores, r.unit)
        (order, burden), eager = both(r, gram, penalty, use)
        check(r, order, burden, penalty, exact=whole and penalty != "mean")
        live = r.live()
        assert torch.equal(order[live], eager[0][live])
        assert torch.allclose(burden[live], eager[1][live], atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 999), st.sampled_from(PENALTIES), st.booleans())
def test_any_rows(diverse, device, n, width, seed, penalty, gram):
    with pytest.MonkeyPatch.context() as patch:
        r = rows(device, 2, n, width, seed, whole=True, quota=None if seed % 2 else torch.tensor([n // 3, 0]))
        r = dataclasses.replace(r, quota=torch.minimum(r.quota, r.candidates.sum(-1)), steps=n)
        (order, burden), eager = both(r, gram, penalty, lambda names: patch.setenv("CASK_EVAL_KERNELS", names))
    check(r, order, burden, penalty, exact=penalty != "mean")
    live = r.live()
    assert torch.equal(order[live], eager[0][live])


def test_all_alike_and_nothing_to_pick(diverse, device, use):
    r = rows(device, 2, 9, quota=torch.tensor([0, 0]))
    r = dataclasses.replace(r, scores=torch.zeros_like(r.scores), candidates=torch.ones_like(r.candidates))
    assert both(r, True, "max", use)[0][0].shape == (2, 0)
    alike = torch.zeros_like(r.unit)
    alike[..., 0] = 1
    r = dataclasses.replace(r, unit=alike, quota=torch.tensor([9, 4], device=device), steps=9)
    (order, _), eager = both(r, True, "max", use)
    assert order[0].tolist() == list(range(9)) == eager[0][0].tolist() and order[1, :4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_selector_keeps_the_same(diverse, device, use, penalty, monkeypatch):
    from test_kernel_compact import on

    e = on(device, entries(geometry(layers=2)))
    candidates = e.resident
    scores = torch.randn(candidates.shape, generator=torch.Generator().manual_seed(0)).to(device)
    quota = torch.tensor([5, 0, 7], device=device)[None, :, None].expand(2, 3, 2)
    chosen = Diverse(0.7, penalty=penalty, path="gram")
    want, called = chosen.select(scores, candidates, quota, e), []
    use("diverse")
    pick = diverse.pick
    monkeypatch.setattr(diverse, "pick", lambda *args: called.append(1) or pick(*args))
    got = chosen.select(scores, candidates, quota, e)
    assert called and torch.equal(got.keep, want.keep)
    assert torch.allclose(got.measures["redundancy"], want.measures["redundancy"], atol=1e-5)


def test_what_the_kernel_does_not_take(diverse, device):
    r = rows(device)
    assert not diverse.takes(r.scores.double(), r.unit.double())
    assert not diverse.takes(torch.zeros(1, 8193, device=device), r.unit)
