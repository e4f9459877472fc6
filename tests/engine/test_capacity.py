"""How many sequences are run at once where nobody says."""

import pytest
import torch
from engine_models import build
from test_generate import bound, requests, run

from cask_eval.engine import capacity
from cask_eval.engine.attention import NAME
from cask_eval.engine.capacity import MOST, fitting, free_bytes, slot_bytes
from cask_eval.engine.model import geometry
from cask_eval.engine.sampling import Sampling
from cask_eval.engine.slots import SlotCache
from cask_eval.engine.usage import Usage


@pytest.fixture(scope="module")
def model():
    built = build("llama")
    built.set_attn_implementation(NAME)
    return built


def fits(model, policy, free, count=500, new=40, budget=40):
    return fitting(model, requests(count), policy, policy.schedule(budget), lambda _: new, free)


@pytest.mark.parametrize("preset", ["fullkv", "recency", "h2o", "snapkv"])
def test_a_slot_is_as_large_as_it_says(model, preset):
    policy = bound(model, preset)
    built = SlotCache(geometry(model), 3, 50, "cpu", policy.needs, policy.footprint.packing)
    assert slot_bytes(model, policy, 50) == built.slot_bytes


def test_memory_decides(model):
    policy = bound(model, "recency", delta=8)
    each = slot_bytes(model, policy, policy.schedule(40).capacity(14, 40))
    few, more = fits(model, policy, 40 * each), fits(model, policy, 80 * each)
    assert 1 < few < more < MOST["cpu"]
    assert fits(model, policy, 0) == 1
    assert fits(model, policy, 1 << 40) == MOST["cpu"]
    assert fits(model, policy, 1 << 40, count=5) == 5


def test_the_full_cache_needs_more(model):
    full, small = bound(model, "fullkv"), bound(model, "recency", delta=8)
    assert fits(model, full, 1 << 25, new=4000) < fits(model, small, 1 << 25, new=4000)


def test_free_memory_is_known(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    assert 1 << 20 < free_bytes(cpu) < 1 << 50
    (tmp_path / "meminfo").write_text("MemTotal:       24677472 kB\nMemFree:   100 kB\nMemAvailable:   21000000 kB\n")
    monkeypatch.setattr(capacity, "MEMINFO", tmp_path / "meminfo")
    assert free_bytes(cpu) == 21_000_000 * 1024
    for share, left in ((1 / 4, 21_000_000 * 256), (3.0, 21_000_000 * 1024)):  # with others beside it
        monkeypatch.setattr(capacity, "_mine", 1.0)
        capacity.only(share)
        assert free_bytes(cpu) == left
    monkeypatch.setattr(capacity, "MEMINFO", tmp_path / "none")
    assert 1 << 20 < free_bytes(cpu) < 1 << 50


def test_usage_by_hand(model):
    """Three trials of 6 tokens in two slots: 5 forwards with both, then 5 with the one that is left."""
    usage, policy = Usage(), bound(model, "fullkv")
    out = run(model, requests(3), policy, 1, Sampling(6), slots=2, usage=usage)
    lengths = [o.residency.prompt_tokens for o in out.values()]
    assert (usage.steps, usage.most, usage.trial_rows) == (10, 2, 15)
    assert usage.rows == 15
    assert usage.trial_columns == sum(n + i for n in lengths for i in range(1, 6))
    assert usage.columns >= usage.trial_columns
    assert usage.prompt_tokens == sum(lengths) and usage.prompt_places >= usage.prompt_tokens
    assert "up to 2 sequences at once in 10 decode steps; of what was computed, 100% of the rows, " in usage.text()


def test_without_a_step_there_is_nothing_to_say():
    assert Usage().text() == ""
