"""The decode kernel against fp64 arithmetic, and against the eager path."""

import math
from types import SimpleNamespace

import pytest
import torch

from cask_eval.engine.attention import slot_attention

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(scope="module")
def attention(device):
    from cask_eval.engine.kernels import attention

    return attention


def oracle(query, key, value, counts, bias, scaling):
    """Entry by entry, in fp64."""
    batch, query_heads, _, dim = query.shape
    heads = key.shape[1]
    out = torch.zeros(batch, 1, query_heads, dim, dtype=torch.float64)
    for b in range(batch):
        for q in range(query_heads):
            h = q // (query_heads // heads)
            count = int(counts[b, h])
            if not count:
                continue
            keys, values = key[b, h, :count].double(), value[b, h, :count].double()
            logits = torch.stack([(k * query[b, q, 0].double()).sum() * scaling for k in keys])
            if bias is not None:
                logits = logits + bias[b, min(h, bias.shape[1] - 1), 0, :count].double()
            weight = (logits - logits.max()).exp()
            out[b, 0, q] = (weight[:, None] * values).sum(0) / weight.sum()
    return out


def case(device, batch=2, heads=2, groups=4, dim=16, width=40, dtype=torch.float32, seed=0, counts=None):
    """Views of larger buffers, in which NaN stands where no entry is."""
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, 1, heads * groups, dim, generator=g).transpose(1, 2).to(dtype)
    key, value = (torch.randn(2, batch + 1, heads, width + 9, dim, generator=g).to(dtype) for _ in range(2))
    if counts is None:
        counts = torch.randint(1, width + 1, (batch, heads), generator=g)
    counts = torch.as_tensor(counts)
    beyond = torch.arange(width + 9) >= counts[..., None]
    key[1, :batch].masked_fill_(beyond[..., None], torch.nan)
    value[1, :batch].masked_fill_(beyond[..., None], torch.nan)
    key, value = (x.to(device)[1, :batch, :, :width] for x in (key, value))
    return query.to(device), key, value, counts.to(device)


def check(attention, query, key, value, counts, bias=None, scaling=0.3):
    assert attention.takes(query, key, value)
    got = attention.attend(query, key, value, counts - 1, 1, bias, scaling)
    assert got.dtype == query.dtype and got.is_contiguous()
    cpu = (None if x is None else x.cpu() for x in (query, key, value, counts, bias))
    want = oracle(*cpu, scaling)
    assert torch.allclose(got.cpu().double(), want, rtol=0, atol=CLOSE[query.dtype])
    return got


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("groups", "dim"), [(7, 16), (4, 20), (1, 3), (3, 1), (17, 6)])
def test_equals_the_oracle(attention, device, groups, dim, dtype):
    check(attention, *case(device, groups=groups, dim=dim, dtype=dtype))


@pytest.mark.parametrize("width", [1, 31, 64, 256, 257, 530])
def test_one_chunk_and_several(attention, device, width):
    check(attention, *case(device, heads=1, width=width))
    check(attention, *case(device, batch=1, heads=1, width=width, counts=[[width]]))


def test_heads_without_entries_give_zero(attention, device):
    for width in (20, 300):
        got = check(attention, *case(device, width=width, counts=[[0, 3], [width, 0]]))
        assert not got[0, 0, :4].any() and not got[1, 0, 4:].any()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("width", [40, 300])
def test_a_bias_is_added_and_hides(attention, device, shared, width):
    query, key, value, counts = case(device, width=width, counts=[[width, 3], [width - 1, width]])
    bias = torch.randn(2, 1 if shared else 2, 1, width, generator=torch.Generator().manual_seed(1))
    bias[..., :1] = -torch.inf
    bias[..., 2:280] = -torch.inf  # a whole chunk, nearly
    check(attention, query, key, value, counts, bias.to(device))


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(attention, device, seed):
    g = torch.Generator().manual_seed(seed)
    batch, heads, groups, dim, width = (int(torch.randint(1, m, (), generator=g)) for m in (4, 4, 9, 40, 600))
    check(attention, *case(device, batch, heads, groups, dim, width, seed=seed))


def test_what_a_row_gets_does_not_depend_on_its_company(attention, device):
    """To the bit, beside other rows and in wider views."""
    query, key, value, counts = case(device, batch=3, width=600, counts=[[100, 30], [600, 280], [1, 257]])
    key, value = key.nan_to_num(0), value.nan_to_num(0)
    together = attention.attend(query, key, value, counts, 0, None, 0.3)
    for row in range(3):
        most = int(counts[row].max())
        at = slice(row, row + 1)
        alone = attention.attend(query[at], key[at, :, :most], value[at, :, :most], counts[at], 0, None, 0.3)
        assert torch.equal(alone, together[at])


def test_nan_of_an_entry_that_exists_is_not_hidden(attention, device):
    query, key, value, counts = case(device, width=300, counts=[[300, 300], [300, 300]])
    key = key.clone()
    key[0, 0, 290] = torch.nan
    got = attention.attend(query, key, value, counts, 0, None, 0.3)
    assert got[0, 0, :4].isnan().all() and not got[0, 0, 4:].isnan().any() and not got[1].isnan().any()


def test_what_the_kernel_does_not_take(attention, device):
    x = torch.zeros(1, 2, 1, 16, device=device)
    assert not attention.takes(x.double(), x.double(), x.double())
    assert not attention.takes(x, x.bfloat16(), x.bfloat16())
    wide = torch.zeros(1, 2, 1, 512, device=device)
    assert not attention.takes(wide, wide, wide)


@pytest.mark.parametrize("bias", [False, True])
def test_slot_attention_takes_it_when_asked(attention, device, use, monkeypatch, bias):
    query, key, value, counts = case(device)
    key, value = key.nan_to_num(0), value.nan_to_num(0)
    visible = torch.arange(key.shape[2], device=device) < counts[..., None]
    mask = visible[:, :, None]
    if bias:
        mask = torch.where(mask, torch.randn(mask.shape, device=device), -torch.inf)
    slots = SimpleNamespace(see=lambda *_: None, mask=lambda _: mask, prefix=lambda _: (counts, 0))
    layer = SimpleNamespace(layer_idx=0)
    eager, _ = slot_attention(layer, query, key, value, None, scaling=0.3, slots=slots)
    use("attention")
    called = []
    attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args: called.append(1) or attend(*args))
    ours, _ = slot_attention(layer, query, key, value, None, scaling=0.3, slots=slots)
    assert called and ours.shape == eager.shape
    assert torch.allclose(ours, eager, rtol=0, atol=1e-5)
    slots.prefix = lambda _: None
    slot_attention(layer, query, key, value, None, scaling=0.3, slots=slots)
    assert len(called) == 1


def test_a_softmax_of_large_logits(attention, device):
    query, key, value, counts = case(device, counts=[[40, 40], [40, 40]])
    query = query * 300
    got = attention.attend(query, key, value, counts, 0, None, 1.0).cpu().double()
    want = oracle(query.cpu(), key.cpu(), value.cpu(), counts.cpu(), None, 1.0)
    assert math.isfinite(float(got.sum())) and torch.allclose(got, want, atol=1e-3)
