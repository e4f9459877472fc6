"""Bytes against a slow store that packs entry by entry, and the figures of the literature."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.footprint import Footprint, Packing

WIDE = dict(head_dim=128, itemsize=2)  # a 16-bit model of the 7B class


def stored(packing, head_dim, itemsize, prompt, reads):
    """KIVI's buffers of one head, entry by entry: bytes at each read after a prompt of `prompt` entries. Keys leave
    their buffer in whole blocks, values one by one."""
    loose_keys = packed_keys = loose_values = packed_values = 0

    def settle():
        nonlocal loose_keys, packed_keys, loose_values, packed_values
        while loose_keys >= packing.residual:
            loose_keys -= packing.residual
            packed_keys += packing.residual
        while loose_values > packing.residual:
            loose_values -= 1
            packed_values += 1

    loose_keys = loose_values = prompt
    out = []
    for _ in range(reads):
        settle()
        loose_keys += 1
        loose_values += 1
        bits = (packed_keys + packed_values) * head_dim * packing.bits
        # One scale and one zero per channel and key group, and per value and channel group.
        key_scales = sum(2 for _ in range(0, packed_keys, packing.group) for _ in range(head_dim))
        value_scales = sum(2 for _ in range(packed_values) for _ in range(0, head_dim, packing.group))
        full = (loose_keys + loose_values) * head_dim
        assert bits % 8 == 0
        out.append((full + key_scales + value_scales) * itemsize + bits // 8)
    return out


@st.composite
def packed(draw):
    group = draw(st.sampled_from([1, 2, 4]))
    packing = Packing(draw(st.sampled_from([2, 4, 8])), group, group * draw(st.integers(1, 4)))
    return Footprint(draw(st.integers(1, 3)), 4 * draw(st.integers(1, 3)), draw(st.sampled_from([2, 4])), packing)


@given(packed(), st.integers(0, 40))
def test_payload_is_what_a_store_holds(footprint, prompt):
    p = footprint.packing
    want = stored(p, footprint.head_dim, footprint.itemsize, prompt, 30)
    assert [footprint.payload(prompt + t) for t in range(1, 31)] == [footprint.heads * n for n in want]


@given(packed() | st.builds(Footprint, st.integers(1, 9), st.integers(1, 64), st.sampled_from([2, 4])))
def test_sums_in_closed_form(footprint):
    total = 0
    assert footprint.payload_through(0) == 0
    for n in range(1, 70):
        total += footprint.payload(n)
        assert footprint.payload_through(n) == total


@given(packed(), st.integers(0, 5), st.integers(0, 3), st.integers(1, 60), st.integers(0, 60))
def test_the_largest_total_of_a_stretch_is_at_its_end_or_at_its_crest(footprint, trait, shared, first, steps):
    footprint = Footprint(footprint.heads, footprint.head_dim, footprint.itemsize, footprint.packing, trait, shared, 7)
    last = first + steps
    crest = footprint.crest(last)
    candidates = [last, crest] if crest >= first else [last]
    assert max(map(footprint.total, range(first, last + 1))) == max(map(footprint.total, candidates))


@pytest.mark.parametrize("residual", [32, 96])
def test_around_the_residual(residual):
    """At R resident entries nothing is packed yet; the read after that finds the first key block packed."""
    f = Footprint(1, **WIDE, packing=Packing(2, 32, residual))
    packed_key = 128 * 2 // 8 + 128 * 4 // 32
    assert f.payload(residual) == residual * 512
    assert f.payload(residual + 1) == residual * packed_key + 256 + (residual + 1) * 256
    assert f.payload(residual + 2) == f.payload(residual + 1) + 256 + packed_key


@pytest.mark.parametrize("group, share", [(32, Fraction("0.1875")), (128, Fraction("0.140625"))])
def test_two_bits_in_the_long_run(group, share):
    """methods.md §2: bits/16 + 2/G of a 16-bit entry, scale and zero included."""
    f = Footprint(1, **WIDE, packing=Packing(2, group, group))
    block = f.payload(1_000 * group + 1) - f.payload(999 * group + 1)
    assert Fraction(block, group * f.entry_bytes) == share


@pytest.mark.parametrize("residual, most", [(128, 64), (32, 217)])
def test_what_64_entries_hold(residual, most):
    """methods.md §2: how far a cache grows before it needs more than 64 full-precision entries."""
    f = Footprint(1, **WIDE, packing=Packing(2, residual, residual))
    assert abs(next(n for n in range(1, 400) if f.payload(n) > 64 * f.entry_bytes) - most) <= 1


def test_eight_queries_of_a_7b_model_are_28_tokens_a_layer():
    layers, query_heads, kv_heads = 28, 28, 4
    f = Footprint(layers * kv_heads, **WIDE, fixed_bytes=8 * layers * query_heads * 128 * 2)
    assert Fraction(f.auxiliary(1000), layers * kv_heads * f.entry_bytes) == 28


def test_auxiliary_bytes():
    f = Footprint(6, 8, 2, trait_bytes=4, shared_bytes=3, fixed_bytes=100)
    assert f.auxiliary(10) == 10 * (6 * 4 + 3) + 100
    assert f.total(10) == 6 * 10 * 2 * 8 * 2 + f.auxiliary(10)
    assert f.auxiliary_over(30, 4) == 30 * 27 + 400


@pytest.mark.parametrize(
    "bits, group, residual, message",
    [(3, 32, 32, "bits is 3"), (16, 32, 32, "bits is 16"), (2, 32, 48, "residual is 48"), (2, 0, 4, "multiple"),
     (2, 4, 0, "residual is 0")],
)  # fmt: skip
def test_bad_packings(bits, group, residual, message):
    with pytest.raises(ValueError, match=message):
        Packing(bits, group, residual)


@pytest.mark.parametrize("head_dim, group", [(48, 32), (2, 2)])
def test_vectors_that_cannot_be_packed(head_dim, group):
    with pytest.raises(ValueError, match=f"vectors of {head_dim} numbers"):
        Footprint(1, head_dim, 2, Packing(2, group, group))
