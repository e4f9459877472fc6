"""Presets on a quantised cache: parameters, bytes, and the null setting. Their storage: tests/engine/test_packed.py."""

import dataclasses

import pytest
import torch
from cask_methods.presets.fullkv import FullKV
from cask_methods.presets.kivi import Kivi
from cask_methods.presets.tri_kivi import TriKivi
from cask_methods.presets.triattention import TriAttention
from method_cases import geometry

from cask_eval.errors import MethodError
from cask_eval.footprint import Packing

BOTH = pytest.mark.parametrize("preset, reference", [(Kivi, FullKV), (TriKivi, TriAttention)])


@BOTH
def test_parameters_are_the_packing(preset, reference):
    assert preset().packing() == Packing(2, 32, 32)
    assert preset.make("p", {"bits": 8, "group_size": 16, "residual": 48}).packing() == Packing(8, 16, 48)
    with pytest.raises(MethodError, match="use one of 2, 4, 8, 16"):
        preset.make("p", {"bits": 3})
    with pytest.raises(MethodError, match="residual is 48; it must be a multiple of group_size, 32"):
        preset.make("p", {"residual": 48})
    with pytest.raises(MethodError, match="group 32 does not divide"):
        preset().footprint(geometry(head_dim=16))


def test_the_references_own_checks_still_hold():
    with pytest.raises(MethodError, match="overflow 'first'"):
        TriKivi.make("p", {"overflow": "first", "prompt": "outside"})


@BOTH
def test_sixteen_bits_are_the_reference(preset, reference):
    null = preset.make("p", {"bits": preset.parameters()["bits"].metadata["null"]})
    assert null.packing() is None
    assert null.schedule(64) == reference().schedule(64)
    assert null.parts() == reference().parts()
    assert null.footprint(geometry()) == reference().footprint(geometry())


def test_kivi_never_fires():
    schedule = Kivi().schedule(64)
    assert schedule.trigger == "never" and not schedule.fires(10_000, 5, 5, 10_000)
    Kivi().check(10_000, 1)


def half_precision(**sizes):
    return dataclasses.replace(geometry(**sizes), dtype=torch.bfloat16)


def test_published_densities():
    """Of a 16-bit entry, a packed one takes 0.1875 (groups of 32) or 0.1406 (of 128), scale and zero included."""
    geo = half_precision(head_dim=128)
    for group, share in ((32, 0.1875), (128, 0.140625)):
        footprint = Kivi(group_size=group, residual=group).footprint(geo)
        more = footprint.payload(128 * 20 + 1) - footprint.payload(128 * 10 + 1)
        assert more == share * 128 * 10 * geo.entry_bytes * footprint.heads


def test_what_the_memory_of_64_entries_holds():
    """64 entries where the residual is 128: nothing is ever packed. Where it is 32, about 217 with both residuals full
    (methods.md §2), and more while the keys' is not."""
    geo = half_precision(layers=1, kv_heads=1, head_dim=128)

    def fitting(residual):
        footprint = Kivi(group_size=residual, residual=residual).footprint(geo)
        return [n for n in range(500) if footprint.payload(n) <= 64 * geo.entry_bytes]

    assert fitting(128) == list(range(65))
    assert min(set(range(500)) - set(fitting(32))) == 217


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_same_memory_holds_more_entries(bits):
    geo = half_precision(head_dim=128)
    plain, packed = TriAttention().footprint(geo), TriKivi(bits=bits).footprint(geo)
    for n in range(1, 33):
        assert packed.total(n) == plain.total(n)
    for n in range(34, 600):
        assert packed.total(n) < plain.total(n)
