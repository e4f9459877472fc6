"""Each rule of the cache comparison with a case that fails it and nothing else."""

from dataclasses import replace
from fractions import Fraction

import pytest
from small_study import account

from cask_eval.decide.matched import Caches, compare, fault, mean
from cask_eval.footprint import Footprint, Packing
from cask_eval.ledger.events import ScheduleLock
from cask_eval.protocol.model import MatchedCache
from cask_eval.residency import expected
from cask_eval.schedule import Schedule

RULE = MatchedCache()
HELD = Footprint(heads=2, head_dim=2, itemsize=2)
AHEAD, BEHIND, EQUAL = Fraction(1, 10), Fraction(-1, 10), Fraction(0)


def caches(budget=16, n=40, *, held=None, truncated=0, prompt="pinned", samples=1) -> Caches:
    """Every problem with the same account, so that the ratio has no spread."""
    one = held or account(budget, delta=4)
    return of({f"p{i}": [one] * samples for i in range(n)}, truncated, prompt, samples)


def of(accounts, truncated=0, prompt="pinned", samples=1, footprint=HELD) -> Caches:
    return Caches(samples, accounts, truncated, prompt, footprint)


def verdict(baseline, candidate, difference=AHEAD, rule=RULE):
    found = compare(baseline, candidate, difference, rule, seed=1)
    return found.verdict, " ".join(found.reasons)


def test_equal_caches_match():
    found = compare(caches(), caches(), AHEAD, RULE, seed=1)
    assert (found.verdict, found.ratio, found.reasons) == ("matched", "1", [])
    assert (found.interval.level, found.interval.low, found.interval.high) == ("0.9", "1", "1")


def test_ratio_is_the_mean_over_problems_of_exact_means():
    # Problem means 16 and 18 against 16 and 16: (34/2)/(32/2), not the pooled ratio of long and short trials.
    flat, high = account(100, steps=12, prompt_tokens=10), account(100, steps=16, prompt_tokens=10)
    assert (flat.mean, high.mean) == (Fraction(33, 2), Fraction(37, 2))
    baseline = of({"a": [flat], "b": [flat]})
    candidate = of({"a": [flat], "b": [high]})
    assert compare(baseline, candidate, AHEAD, RULE, seed=1).ratio == format(float(Fraction(35, 33)), ".9g")


def test_samples_are_averaged_before_problems():
    low, high = account(100, steps=12), account(100, steps=16)
    assert of({"a": [low, high]}, samples=2).means == {"a": Fraction(35, 2)}


def test_a_problem_with_part_of_its_samples_is_not_compared():
    low, high = account(100, steps=12), account(100, steps=16)
    assert of({"a": [low, high], "b": [high]}, samples=2).means == {"a": Fraction(35, 2)}


@pytest.mark.parametrize("budget, difference, want", [
    (12, AHEAD, "tolerated"), (12, BEHIND, "void"), (12, EQUAL, "void"),
    (20, AHEAD, "void"), (20, BEHIND, "tolerated"), (20, EQUAL, "void"),
])  # fmt: skip
def test_only_an_error_against_the_claim_is_tolerated(budget, difference, want):
    found, reasons = verdict(caches(16), caches(budget), difference, RULE.model_copy(update={"peak_ratio": "9"}))
    assert found == want
    assert "not within" in reasons


def test_tolerance_is_inclusive():
    ours, theirs = account(100, steps=12), account(100, steps=16)  # 33/2 and 37/2
    exact = MatchedCache(tolerance="0.5", interval_tolerance="0.5")
    assert verdict(caches(held=theirs), caches(held=ours), AHEAD, _never_active(exact))[0] == "matched"
    ratio = Fraction(33, 37)
    assert 1 - ratio > Fraction("0.1")
    tight = MatchedCache(tolerance="0.1", interval_tolerance="0.5")
    assert verdict(caches(held=theirs), caches(held=ours), BEHIND, _never_active(tight))[0] == "void"


def _never_active(rule):
    return rule.model_copy(update={"min_active": "0"})


def test_the_interval_alone_can_void():
    # The mean ratio is 1, but single problems are off by a factor: the interval is wide on both sides.
    low, high = account(8), account(32)
    some, other = [low, high] * 10, [high, low] * 10
    baseline = of({f"p{i}": [a] for i, a in enumerate(some)})
    candidate = of({f"p{i}": [a] for i, a in enumerate(other)})
    for difference in (AHEAD, BEHIND):
        found = compare(baseline, candidate, difference, RULE, seed=1)
        assert (found.verdict, found.ratio) == ("void", "1")
        assert "either direction" in found.reasons[0]


def test_peak():
    base = account(100, steps=3, prompt_tokens=10)  # peak 13
    long = account(100, steps=12, prompt_tokens=10)  # peak 22 > 1.5 × 13
    rule = _never_active(RULE.model_copy(update={"tolerance": "1", "interval_tolerance": "1"}))
    found, reasons = verdict(caches(held=base), caches(held=long), AHEAD, rule)
    assert found == "void" and "peak 22 exceeds 1.5 × the baseline's 13" in reasons
    assert verdict(caches(held=long), caches(held=base), AHEAD, rule)[0] == "matched"
    looser = rule.model_copy(update={"peak_ratio": "2"})
    assert verdict(caches(held=base), caches(held=long), AHEAD, looser)[0] == "matched"


@pytest.mark.parametrize("idle, want", [(8, "matched"), (9, "void")])
@pytest.mark.parametrize("which", ["baseline", "candidate"])
def test_problems_without_an_event(idle, want, which):
    # A 6-step trial ends before its first event; 8 of 40 is just the allowed fifth.
    short = account(16, steps=6)
    assert not short.events
    arm = of({f"p{i}": [short if i < idle else account(16)] for i in range(40)})
    wide = RULE.model_copy(update={"tolerance": "0.2", "interval_tolerance": "0.2"})
    arms = {"baseline": caches(), "candidate": caches(), which: arm}
    found, reasons = verdict(arms["baseline"], arms["candidate"], AHEAD, wide)
    assert found == want
    assert (which in reasons and "were compressed" in reasons) == (want == "void")


@pytest.mark.parametrize("hits, want", [((0, 4), "matched"), ((0, 5), "void"), ((5, 0), "void"), ((7, 5), "matched")])
def test_cap_hits(hits, want):
    found, reasons = verdict(caches(truncated=hits[0]), caches(truncated=hits[1]))
    assert found == want
    assert ("length cap" in reasons) == (want == "void")


def test_prompt_policies():
    found, reasons = verdict(caches(prompt="pinned"), caches(prompt="outside"))
    assert found == "void" and "prompt policies differ" in reasons


@pytest.mark.parametrize("absent, want", [(2, "matched"), (3, "void")])
@pytest.mark.parametrize("which", ["baseline", "candidate"])
def test_problems_without_an_account_are_left_out_of_both_arms(absent, want, which):
    # The incomplete problems would be far off, if they were compared.
    odd = account(40, steps=60)
    gaps = {f"p{i}": [] if i < absent else [account(16)] for i in range(40)}
    full = {f"p{i}": [odd] if i < absent else [account(16)] for i in range(40)}
    arms = {"baseline": full, "candidate": full, which: gaps}
    rule = RULE.model_copy(update={"peak_ratio": "9"})
    found = compare(of(arms["baseline"]), of(arms["candidate"]), AHEAD, rule, seed=1)
    assert (found.verdict, found.ratio) == (want, "1")
    assert any("lack a residency account" in r for r in found.reasons) == (want == "void")


def test_nothing_to_compare():
    empty = of({"a": [], "b": []})
    found = compare(empty, empty, EQUAL, RULE, seed=1)
    assert (found.verdict, found.ratio, found.interval.low, found.interval.high) == ("void", "", "", "")


def test_models_of_different_shape():
    small = replace(HELD, head_dim=1)
    other = expected(Schedule("slack", 16, 4, "pinned"), small, 10, [[0] * 41], 1)
    found, reasons = verdict(caches(), of({f"p{i}": [other] for i in range(40)}, footprint=small))
    assert found == "void" and "entry bytes" in reasons and "contradict" not in reasons


@pytest.mark.parametrize(
    "forge",
    [
        lambda a: replace(a, entries=a.entries - 1),
        lambda a: replace(a, peak_entries=a.peak_entries - 1),
        lambda a: replace(a, peak_bytes=a.peak_bytes - 1),
        lambda a: replace(a, aux_bytes=a.aux_bytes + 1),
        lambda a: replace(a, chains=[a]),
        lambda a: replace(a, events=a.events[1:]),
        lambda a: replace(a, events=[(t, b, k - 2) for t, b, k in a.events]),
        lambda a: replace(a, steps=a.steps - 30),
        lambda a: replace(a, layers=0),
        lambda a: replace(a, entry_bytes=0),
        lambda a: replace(a, payload_bytes=0),
    ],
    ids=[
        "entries",
        "peak",
        "peak bytes",
        "aux bytes",
        "chain",
        "event dropped",
        "event deepened",
        "steps",
        "layers",
        "bytes",
        "empty",
    ],
)
def test_an_account_that_contradicts_itself(forge):
    honest = account(16)
    assert fault(honest, HELD) is None
    forged = forge(honest)
    assert fault(forged, HELD)
    for which in ("baseline", "candidate"):
        arms = {"baseline": caches(), "candidate": caches(), which: caches()}
        arms[which].accounts["p3"][0] = forged
        found, reasons = verdict(arms["baseline"], arms["candidate"])
        assert found == "void"
        assert f"{which}: 1 residency accounts" in reasons and "p3" in reasons


CHAINS = Schedule("slack", 16, 8, "pinned", chains=2)


def several(footprint=HELD):
    return expected(CHAINS, footprint, 5, [[0] * 60, [0] * 41], 1)


@pytest.mark.parametrize(
    "forge",
    [
        lambda a: replace(a, entries=a.entries - 1),
        lambda a: replace(a, peak_bytes=a.peak_bytes - 8),
        lambda a: replace(a, steps=a.steps + 1),
        lambda a: replace(a, chains=a.chains[:1]),
        lambda a: replace(a, chains=[a.chains[0], replace(a.chains[1], entries=1)]),
        lambda a: replace(a, chains=[a.chains[0], replace(a.chains[1], steps=9)]),
    ],
    ids=["entries", "peak", "steps", "chain dropped", "chain understated", "chain cut"],
)
def test_the_account_of_several_chains_is_checked_chain_by_chain(forge):
    assert fault(several(), HELD) is None and several().active
    assert fault(forge(several()), HELD)


def test_bytes_are_compared_and_not_entries():
    """Two bits an entry: four times the entries in fewer bytes, with a peak to match."""
    wide = Footprint(heads=2, head_dim=32, itemsize=2)
    packed = replace(wide, packing=Packing(2, 4, 4))
    schedule = Schedule("slack", 64, 8, "pinned")
    full = expected(schedule, wide, 10, [[0] * 300], 1)
    thin = expected(schedule, packed, 10, [[0] * 300], 1)
    assert full.entries == thin.entries and thin.mean < Fraction(3, 4) * full.mean
    assert fault(thin, packed) is None and fault(thin, wide)
    arms = [of({f"p{i}": [a] for i in range(40)}, footprint=f) for a, f in ((full, wide), (thin, packed))]
    found = compare(*arms, AHEAD, RULE, seed=1)
    assert found.verdict == "tolerated" and found.ratio == format(float(thin.mean / full.mean), ".9g")


def test_remembered_queries_count():
    held = replace(HELD, fixed_bytes=16 * 20)  # 20 entries per head
    account_with = expected(Schedule("slack", 16, 4, "pinned"), held, 10, [[0] * 41], 1)
    assert account_with.mean == account(16).mean + 20
    found, reasons = verdict(caches(16), of({f"p{i}": [account_with] for i in range(40)}, footprint=held))
    assert found == "void" and "exceeds 1.5" in reasons


def test_an_arm_that_was_never_frozen():
    found, reasons = verdict(caches(), of({f"p{i}": [account(16)] for i in range(40)}, footprint=None))
    assert found == "void" and "never frozen" in reasons


def test_policies_may_differ_where_the_protocol_says_so():
    differing = caches(prompt="pinned"), caches(prompt="two_stage")
    assert verdict(*differing)[0] == "void"
    assert verdict(*differing, rule=RULE.model_copy(update={"prompt_policies": "any"})) == ("matched", "")


def test_policies_in_words():
    def words(**schedule):
        return ScheduleLock(trigger="slack", budget=4, delta=2, **schedule).prompt_policy

    assert words(prompt="pinned") == "pinned" and words(prompt="two_stage", overflow="last") == "two_stage"
    assert words(prompt="pinned", overflow="first") == "pinned (the first entries where it fills the budget)"


def test_mean_is_exact():
    values = [Fraction(1, n) for n in range(1, 200)]
    assert mean(values) == sum(values) / len(values)


def test_every_fault_is_listed():
    found = compare(caches(truncated=0), caches(20, truncated=9, prompt="outside"), AHEAD, RULE, seed=1)
    assert len(found.reasons) == 3
