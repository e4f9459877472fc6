"""Plans of runs whose counts are known: by hand, from cask.md, and from the closed form of triattention.md §2."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cask_eval.footprint import Footprint
from cask_eval.plan import plan, weigh
from cask_eval.residency import walk
from cask_eval.schedule import EXHAUSTED, INACTIVE, OVERFLOWS, PROMPTS, Schedule


def cask(budget, *, count=True, slack=True, recent=8):
    return Schedule("slack" if slack else "periodic", budget, 128, "two_stage", count, "last", recent)


def triattention(budget, *, count=True, slack=True):
    return Schedule("slack" if slack else "periodic", budget, 128, "pinned", count, "first")


@pytest.mark.parametrize("budget", [256, 384])
def test_multi_news(budget):
    found = plan(cask(budget), 2691, 512)
    assert (found.terminal_cache, found.terminal_prefix) == (budget + 126, budget - 10)
    assert (found.prefix_events, found.decode_events, found.guards) == (2, 3, {})
    assert found.regime == "active" and found.peak_cache == 2692
    assert [(e.step, e.position, e.before, e.after) for e in found.events] == [
        (1, 2692, 2692, budget),
        (129, 2820, budget + 128, budget),
        (257, 2948, budget + 128, budget),
        (385, 3076, budget + 128, budget),
    ]
    # b + 1 … b + 128 three times, then to b + 126, after the bare prompt's first read.
    reads = 2692 + 3 * sum(range(budget + 1, budget + 129)) + sum(range(budget + 1, budget + 127))
    assert found.mean_cache == Fraction(reads, 511)


@pytest.mark.parametrize("prompt, output, decode", [(4072, 128, 0), (11758, 32, 0), (16474, 32, 0), (7379, 32, 0),
                                                    (5259, 512, 3)])  # fmt: skip
@pytest.mark.parametrize("budget", [256, 384])
def test_prompt_heavy_runs(prompt, output, decode, budget):
    found = plan(cask(budget), prompt, output)
    last = 1 + 128 * decode
    assert (found.decode_events, found.prefix_events) == (decode, 1 + (decode > 0))
    assert found.terminal_cache == budget + output - 1 - last
    assert (found.guards, found.regime) == ({}, "active")


@pytest.mark.parametrize("prompt, budget, step", [(10011, 256, 357), (10011, 384, 485), (11040, 256, 352),
                                                  (11040, 384, 480)])  # fmt: skip
def test_the_boundary_probes_exhaust_their_budget(prompt, budget, step):
    """Prompt not counted, every 128 tokens: the first event keeps the last b entries, all of which count as prompt."""
    found = plan(cask(budget, count=False, slack=False), prompt, 512)
    assert [e.step for e in found.events] == [step]
    assert (found.prefix_events, found.decode_events, found.guards) == (0, 0, {EXHAUSTED: 1})
    assert (found.terminal_cache, found.terminal_prefix) == (budget + 511 - step, budget)
    assert found.regime == "prefix_budget_exhausted"
    baseline = plan(triattention(budget, count=False, slack=False), prompt, 512)
    assert (baseline.terminal_cache, baseline.terminal_prefix) == (budget + 511 - step, prompt)
    assert (baseline.regime, baseline.guards) == ("prefix_budget_exhausted", {})


def test_merge_inactive_is_counted():
    found = plan(Schedule("slack", 6, 2, "two_stage", False, "last", 1), 5, 20)
    assert set(found.guards) == {INACTIVE} and found.decode_events == 0 and found.regime == "active"
    assert found.guards[INACTIVE] == len(found.events) > 0


@pytest.mark.parametrize("budget, mean, peak", [(64, "128.5", 192), (128, "192.5", 256)])
def test_twice_nominal(budget, mean, peak):
    """triattention.md §2: defaults hold b + (Δ + 1)/2 in the long run."""
    found = plan(triattention(budget), 40, 1_000_000)
    assert abs(found.mean_cache - Fraction(mean)) < Fraction(1, 10) and found.peak_cache == peak
    assert found.terminal_prefix == 40 and found.prefix_events == 0


def test_nothing_happens_below_the_trigger():
    found = plan(triattention(64), 40, 152)
    assert found.regime == "never_compressed" and found.events == [] and found.terminal_cache == 191
    assert plan(triattention(64), 40, 153).regime == "active"


def test_a_single_token_leaves_the_prompt():
    found = plan(triattention(64), 40, 1)
    assert (found.mean_cache, found.peak_cache, found.terminal_cache) == (40, 40, 40)
    found = plan(Schedule("slack", 8, 4, "compete"), 40, 1)
    assert (found.mean_cache, found.peak_cache, found.terminal_cache) == (40, 8, 8)
    assert [(e.step, e.before, e.after) for e in found.events] == [(0, 40, 8)]


def test_chains_add_up():
    whole = plan(Schedule("slack", 65, 128, "pinned", chains=2), 20, 300)
    parts = [plan(Schedule("slack", b, 64, "pinned"), 20, 300) for b in (33, 32)]
    assert whole.terminal_cache == sum(p.terminal_cache for p in parts)
    assert whole.mean_cache == sum(p.mean_cache for p in parts)
    assert whole.decode_events == sum(p.decode_events for p in parts)
    assert {e.chain for e in whole.events} == {0, 1}
    assert [e.step for e in whole.events] == sorted(e.step for e in whole.events)


def test_boundaries_are_never_met():
    schedule = Schedule("boundary", 16, 8, "pinned", earliest=2, boundaries=(0, 1))
    assert plan(schedule, 10, 100) == plan(Schedule("slack", 16, 8, "pinned"), 10, 100)
    assert weigh(schedule, Footprint(2, 2, 2), 10, 100, 1) == walk(schedule, Footprint(2, 2, 2), 10, 99, 1)


@given(
    st.sampled_from(["slack", "periodic", "every_step", "never"]),
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from(PROMPTS),
    st.booleans(),
    st.sampled_from(OVERFLOWS),
    st.integers(1, 60),
    st.integers(2, 120),
)
def test_a_plan_agrees_with_the_account(trigger, budget, delta, prompt_policy, count, overflow, prompt, output):
    schedule = Schedule(trigger, budget, delta, prompt_policy, count, overflow, recent=5)
    found, account = plan(schedule, prompt, output), walk(schedule, Footprint(1, 4, 2), prompt, output - 1, 1)
    assert found.mean_cache == account.mean and found.peak_cache == account.peak_entries
    assert [(e.step, e.before, e.after) for e in found.events] == account.events
    assert account.spans()[-1][0] + account.spans()[-1][1] == found.terminal_cache
    assert sum(e.stage_one or e.stage_two or bool(e.guard) for e in found.events) == len(found.events)


def test_json():
    said = json.loads(json.dumps(plan(cask(256), 2691, 512).to_json()))
    assert isinstance(said["mean_cache"], float)
    assert Fraction(said["mean_cache_exact"]) == plan(cask(256), 2691, 512).mean_cache
    assert all(type(said[key]) is int for key in ("terminal_cache", "peak_cache", "terminal_prefix", "prefix_events"))
    assert said["events"][0]["stage_one"] is True


@pytest.mark.parametrize("prompt, output", [(0, 5), (5, 0)])
def test_no_lengths_are_refused(prompt, output):
    with pytest.raises(ValueError, match="at least 1"):
        plan(cask(256), prompt, output)
