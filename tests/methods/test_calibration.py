import dataclasses
import os
from pathlib import Path

import pytest
import torch
from cask_methods.calibration import Accumulator, Statistics, load
from method_cases import geometry, statistics

from cask_eval.errors import MethodError

OFFICIAL = os.environ.get("CASK_TRIATTENTION_PT") or (
    Path(__file__).resolve().parents[2] / "../shared/data/triattention_ds_qwen7b.pt"
)


def official(path, layers=2, heads=3, half=4, style="half", drop=()):
    g = torch.Generator().manual_seed(0)
    stats = {
        f"layer{a:02d}_head{b:02d}": {
            "q_mean_real": torch.randn(half, generator=g),
            "q_mean_imag": torch.randn(half, generator=g),
            "q_abs_mean": 3 + torch.rand(half, generator=g),
        }
        for a in range(layers)
        for b in range(heads)
        if (a, b) not in drop
    }
    sampled = [[a, b] for a in range(layers) for b in range(heads)]
    torch.save(
        {
            "metadata": {"rope_style": style, "head_dim": 2 * half, "model_name": "toy", "sampled_heads": sampled},
            "stats": stats,
        },
        path,
    )
    return stats


def test_reads_the_official_schema(tmp_path):
    stats = official(tmp_path / "toy.pt")
    got = load(tmp_path / "toy.pt")
    assert (got.layers, got.query_heads, got.head_dim, got.model) == (2, 3, 8, "toy")
    assert torch.equal(got.c_re[1, 2], stats["layer01_head02"]["q_mean_real"])
    assert torch.equal(got.c_im[0, 1], stats["layer00_head01"]["q_mean_imag"])
    assert torch.equal(got.m[1, 0], stats["layer01_head00"]["q_abs_mean"])
    assert got.inv_freq is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"drop": [(0, 1), (1, 0)]}, "lacks 2 of 6 heads: layer 0 head 1, layer 1 head 0"),
        ({"style": "interleaved"}, "interleaved"),
    ],
)
def test_refuses_an_official_file_that_does_not_serve(tmp_path, change, says):
    official(tmp_path / "toy.pt", **change)
    with pytest.raises(MethodError, match=says):
        load(tmp_path / "toy.pt")


@pytest.mark.skipif(not Path(OFFICIAL).is_file(), reason="the official file is not here")
def test_the_official_file():
    got = load(OFFICIAL)
    assert (got.layers, got.query_heads, got.head_dim) == (28, 28, 128)
    r = got.concentration
    assert float(r.mean()) == pytest.approx(0.53, abs=0.005)
    assert float(r.max()) <= 1 + 1e-5
    dominant = r.gather(-1, got.m.argmax(-1, keepdim=True))
    assert float((dominant > 0.95).double().mean()) > 0.98


@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
def test_damaged_and_absent_files(tmp_path, name):
    with pytest.raises(MethodError, match="does not exist"):
        load(tmp_path / name)
    (tmp_path / name).write_bytes(b"not a statistics file")
    with pytest.raises(MethodError, match="bad"):
        load(tmp_path / name)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, str(tmp_path / "w.safetensors"))
    with pytest.raises(MethodError, match="lacks c_re, c_im, m"):
        load(tmp_path / "w.safetensors")


def test_saves_and_loads(tmp_path):
    stats = statistics(geometry())
    stats = Statistics(stats.c_re, stats.c_im, stats.m, stats.inv_freq, "tiny", {"text": "naïve", "tokens": 7})
    stats.save(tmp_path / "a.safetensors")
    stats.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    got = load(tmp_path / "a.safetensors")
    for name in ("c_re", "c_im", "m", "inv_freq"):
        assert torch.equal(getattr(got, name), getattr(stats, name))
    assert (got.model, got.provenance) == (stats.model, stats.provenance)


def test_copies_are_remembered_and_never_stale():
    stats = statistics(geometry())
    double = stats.to(dtype=torch.float64)
    assert double.m.dtype == torch.float64 and stats.to(dtype=torch.float64) is double and stats.to("cpu") is stats
    other = dataclasses.replace(stats, m=2 * stats.m)
    assert torch.equal(other.to(dtype=torch.float64).m, 2 * double.m)


def test_check_names_every_disagreement():
    stats = statistics(geometry())
    stats.check(geometry())
    stats.check(geometry(theta=10000.0 * (1 + 1e-7)))
    with pytest.raises(MethodError, match=r"layers: the file has 3, the model 5; query heads: the file has 4"):
        stats.check(geometry(layers=5, kv_heads=4))
    with pytest.raises(MethodError, match="head_dim"):
        stats.check(geometry(head_dim=8))
    with pytest.raises(MethodError, match="frequencies"):
        stats.check(geometry(theta=500000.0))


def test_accumulates_in_chunks_as_at_once():
    queries = torch.randn(2, 50, 3, 8, generator=torch.Generator().manual_seed(2))
    whole, parts = (Accumulator(2, 3, 8) for _ in range(2))
    for layer in range(2):
        whole.add(layer, queries[layer])
        for chunk in queries[layer].split([1, 0, 30, 19]):
            parts.add(layer, chunk)
    a, b = (x.finish({"text": "t"}, torch.float64) for x in (whole, parts))
    q = torch.complex(queries[..., :4].double(), queries[..., 4:].double())
    for got in (a, b):
        assert got.provenance == {"text": "t", "tokens": 50}
        assert torch.allclose(torch.complex(got.c_re, got.c_im), q.mean(1), atol=1e-14)
        assert torch.allclose(got.m, q.abs().mean(1), atol=1e-14)
        assert bool((got.concentration <= 1).all())
    assert torch.equal(a.m.float(), b.m.float())


def test_accumulator_refuses():
    acc = Accumulator(2, 3, 8)
    with pytest.raises(MethodError, match="same tokens"):
        acc.finish()
    with pytest.raises(MethodError, match="is needed"):
        acc.add(0, torch.zeros(4, 3, 6))
    with pytest.raises(FloatingPointError, match="layer 1"):
        acc.add(1, torch.full((4, 3, 8), torch.nan))
    acc.add(0, torch.ones(4, 3, 8))
    with pytest.raises(MethodError, match=r"\[4, 0\]"):
        acc.finish()


def test_refuses_statistics_that_are_not_finite_or_not_alike():
    ones = torch.ones(1, 2, 3)
    with pytest.raises(MethodError, match="NaN"):
        Statistics(ones, ones * torch.nan, ones)
    with pytest.raises(MethodError, match="one shape"):
        Statistics(ones, ones, ones[:, :1])
