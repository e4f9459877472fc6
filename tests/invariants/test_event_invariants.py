"""Invariants of a single event, for every registered method (methods.md §5: U3, U4, U8, U12, U14)."""

from dataclasses import replace

import pytest
import torch
from cases import PROMPT, Case, counted, null_of, reference_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry

from cask_eval.engine.contract import Geometry
from cask_eval.errors import MethodError

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def meet(case: Case, policy, lengths, prompts, budget, seed=0, geo: Geometry | None = None, **kwargs):
    """(entries, target) of an event that the schedule would ask for, for sequences at their firing length."""
    e = entries(geo or policy.host.geometry, lengths, prompts, seed=seed, needs=policy.needs, **kwargs)
    return counted(policy, e, budget)


def survivors(after):
    return after.entries.positions.masked_fill(~after.keep, -1)


@FEW
@given(st.data())
def test_u3_counts_are_exact_and_everything_terminates(compressing, paper, data):
    policy = compressing.policy(paper)
    prompts = data.draw(st.lists(st.integers(1, PROMPT), min_size=1, max_size=3))
    extra = data.draw(st.integers(0, 30))
    part = policy.schedule(compressing.budget).split()[0]
    lengths = [max(part.target(p) + 4, p + 1) + extra for p in prompts]
    e, target = meet(compressing, policy, lengths, prompts, compressing.budget, data.draw(st.integers(0, 999)))
    after = policy.compress(e, target)
    layers, _, heads, _ = e.positions.shape
    assert after.keep.dtype == torch.bool and after.keep.shape == e.positions.shape
    assert after.keep.sum((0, 2, 3)).tolist() == (target * layers * heads).tolist()
    assert not (after.keep & ~e.resident).any()
    kept = survivors(after)
    for row in kept.flatten(0, 2):
        here = row[row >= 0].tolist()
        assert here == sorted(set(here))


def admits(policy, prompt: int, budget: int) -> bool:
    try:
        policy.method.check(prompt, budget)
        policy.schedule(budget).split()
    except (MethodError, ValueError):
        return False
    return True


@FEW
@given(st.data())
def test_u3_budgets_down_to_the_least_possible(compressing, paper, data):
    """From the fewest entries that the method admits upwards; a budget it cannot serve is refused, never missed."""
    policy = compressing.policy(paper)
    prompt = data.draw(st.integers(1, 4))
    budget = data.draw(st.sampled_from([b for b in range(1, compressing.budget + 1) if admits(policy, prompt, b)]))
    part = policy.schedule(budget).split()[0]
    length = max(part.target(prompt), prompt) + data.draw(st.integers(1, 8))
    e, target = meet(compressing, policy, [length], [prompt], budget, data.draw(st.integers(0, 99)))
    try:
        after = policy.compress(e, target)
    except MethodError as refusal:
        assert any(ch.isdigit() for ch in str(refusal)), refusal  # names what does not fit
        return
    assert int(after.keep.sum()) == int(target) * e.positions.shape[0] * e.positions.shape[2]


def test_u4_what_is_protected_stays(compressing, paper):
    policy = compressing.policy(paper)
    n = compressing.budget + 6
    e, target = meet(compressing, policy, [n, n], [PROMPT, 5], compressing.budget)
    protected = compressing.method.protected(e, target)
    after = policy.compress(e, target)
    assert not (protected & ~after.keep).any()
    assert torch.equal(survivors(after)[protected], e.positions[protected])


def test_u4_an_impossible_budget_raises(compressing):
    schedule = compressing.method.schedule(compressing.budget)
    if schedule.prompt in ("compete", "two_stage") or schedule.overflow != "refuse":
        pytest.skip("the prompt may be evicted")
    if schedule.prompt == "pinned":
        with pytest.raises(MethodError, match="budget"):
            compressing.method.check(10 * compressing.budget, compressing.budget)


@pytest.mark.parametrize("seed", range(3))
def test_u5_a_batch_of_unequal_rows_equals_its_singles(compressing, paper, seed):
    from method_cases import single

    policy = compressing.policy(paper)
    n = compressing.budget + 5
    e, target = meet(compressing, policy, [n, n + 9, n + 2], [5, 2, PROMPT], compressing.budget, seed)
    batch = policy.compress(e, target)
    for r in range(3):
        alone, one = counted(policy, single(e, r), compressing.budget)
        got = policy.compress(alone, one)
        width = alone.positions.shape[-1]
        assert torch.equal(got.keep[:, 0], batch.keep[:, r, :, :width])
        assert not batch.keep[:, r, :, width:].any()
        stay = got.keep[:, 0]
        for field in ("positions", "keys", "values"):
            a, b = getattr(got.entries, field)[:, 0], getattr(batch.entries, field)[:, r, :, :width]
            assert torch.allclose(a[stay], b[stay], rtol=1e-5, atol=1e-6), field


def regrouped(e, perm, groups):
    """The same entries with KV heads (and their query heads) renumbered by `perm`."""
    heads = [g * groups + i for g in perm for i in range(groups)]
    traits = {k: v[:, :, perm] if v.shape[2] > 1 else v for k, v in e.traits.items()}
    queries = e.queries[:, :, heads] if e.queries is not None else None
    return replace(
        e, keys=e.keys[:, :, perm], values=e.values[:, :, perm], positions=e.positions[:, :, perm], queries=queries,
        traits=traits,
    ), heads  # fmt: skip


def test_u8_renumbering_kv_heads_renumbers_the_decision(compressing, paper):
    if not compressing.method.exchangeable:
        pytest.skip("keyed by the head's number")
    policy = compressing.policy(paper)
    n = compressing.budget + 7
    e, target = meet(compressing, policy, [n, n + 3], [4, 6], compressing.budget, 5)
    turned, heads = regrouped(e, [1, 0], 2)
    want = policy.compress(e, target).keep[:, :, [1, 0]]
    got = renumbered(policy, heads).compress(turned, target).keep
    assert torch.equal(got, want)


def renumbered(policy, heads):
    """The policy with the query heads of all calibration statistics in it renumbered."""

    def rebuilt(part):
        if not hasattr(part, "__dataclass_fields__"):
            return part
        changes = {}
        for name in part.__dataclass_fields__:
            value = getattr(part, name)
            if type(value).__name__ == "Statistics":
                changes[name] = replace(value, **{k: getattr(value, k)[:, heads] for k in ("c_re", "c_im", "m")})
            elif (new := rebuilt(value)) is not value:
                changes[name] = new
        return replace(part, **changes) if changes else part

    return replace(
        policy, **{k: rebuilt(getattr(policy, k)) for k in ("scorer", "selector", "allocation", "representation")}
    )


def test_u8_grouped_heads_decide_as_the_same_heads_ungrouped(compressing, paper, tmp_path):
    """Where all query heads of a KV head are alike, writing each out as a head of its own changes no decision."""
    from cask_methods.calibration import load

    from cask_eval.engine.contract import Host

    if not compressing.method.exchangeable:
        pytest.skip("keyed by the head's number")
    groups = 2
    alike, spread = geometry(2, 2, groups), geometry(2, 4, 1)
    first = [0, 0, 2, 2]
    statistics = load(paper.calibration)
    statistics = replace(statistics, **{k: getattr(statistics, k)[:, first] for k in ("c_re", "c_im", "m")})
    statistics.save(tmp_path / "s.safetensors")
    grouped = compressing.policy(Host(alike, str(tmp_path / "s.safetensors"), paper.encode))
    plain = compressing.policy(Host(spread, str(tmp_path / "s.safetensors"), paper.encode))
    n = compressing.budget + 7
    e, target = meet(compressing, grouped, [n, n], [4, 6], compressing.budget, 8, alike)
    if e.queries is not None:
        e = replace(e, queries=e.queries[:, :, first])
    wide = [0, 0, 1, 1]
    traits = {k: v[:, :, wide] if v.shape[2] > 1 else v for k, v in e.traits.items()}
    written_out = replace(
        e, keys=e.keys[:, :, wide], values=e.values[:, :, wide], positions=e.positions[:, :, wide], traits=traits,
        geometry=spread,
    )  # fmt: skip
    assert torch.equal(plain.compress(written_out, target).keep, grouped.compress(e, target).keep[:, :, wide])


@pytest.mark.parametrize("kind", ["one key", "few keys", "zero values", "one spike"])
def test_u12_u14_ties_and_extremes_are_decided_alike_every_time(compressing, paper, kind):
    policy = compressing.policy(paper)
    n = compressing.budget + 1
    e, target = meet(compressing, policy, [n, n + 8], [3, 4], compressing.budget, 3, junk=False)
    if kind == "one key":
        e = replace(e, keys=e.keys[..., :1, :].expand_as(e.keys).contiguous())
    elif kind == "few keys":
        e = replace(e, keys=e.keys.sign(), values=e.values.sign())
    elif kind == "zero values":
        e = replace(e, values=torch.zeros_like(e.values))
    else:
        values = e.values.clone()
        values[..., 6, :] = 1e4
        e = replace(e, values=values)
    first = policy.compress(e, target)
    again = policy.compress(e, target)
    try:
        torch.set_num_threads(2)
        threaded = policy.compress(e, target)
    finally:
        torch.set_num_threads(1)
    for other in (again, threaded):
        assert torch.equal(other.keep, first.keep)
    for field in ("keys", "values"):
        assert torch.isfinite(getattr(first.entries, field)[first.keep]).all()


def test_u14_nan_is_an_error_wherever_it_can_matter(compressing, paper):
    """A method that reads keys (or values, or queries) refuses NaN in them; one that does not is not disturbed."""
    policy = compressing.policy(paper)
    n = compressing.budget + 6
    e, target = meet(compressing, policy, [n], [3], compressing.budget, 4)
    clean = policy.compress(e, target).keep
    for field in ("keys", "values", "queries"):
        tensor = getattr(e, field)
        if tensor is None:
            continue
        broken = tensor.clone()
        broken[0, 0, 0, -1] = torch.nan
        try:
            kept = policy.compress(replace(e, **{field: broken}), target).keep
        except (FloatingPointError, MethodError):
            continue
        assert torch.equal(kept, clean), f"{field} with NaN changed the decision without an error"


def test_u2_the_null_setting_decides_as_the_reference(compressing, paper):
    null = null_of(compressing.name)
    if null is None or null.reference is None:
        pytest.skip("has no null setting")
    ours, theirs = null.bind(paper), reference_of(null).bind(paper)
    budget = max(compressing.budget, 20)
    assert [replace(s, chains=1) for s in ours.schedule(budget).split()] == theirs.schedule(budget).split() or (
        ours.schedule(budget).trigger == "boundary"
    )
    for seed in range(6):
        e, target = meet(compressing, ours, [budget + 4, budget + 9], [4, 7], budget, seed)
        e = replace(e, keys=e.keys.nan_to_num().sign()) if seed % 2 else e  # ties
        a, b = ours.compress(e, target), theirs.compress(e, target)
        assert torch.equal(a.keep, b.keep)
        for field in ("keys", "values", "positions"):
            assert torch.equal(getattr(a.entries, field)[a.keep], getattr(b.entries, field)[b.keep]), field
