"""AMS as published against an oracle written from its description; both presets; wrapped scorers and null settings."""

import dataclasses
import math

import attention_oracle
import pytest
import torch
from cask_methods.presets.alpha import Alpha
from cask_methods.presets.ams import AMS
from cask_methods.presets.ams_faithful import AMSFaithful
from cask_methods.presets.dpp import DPP
from cask_methods.presets.facility_location import FacilityLocation
from cask_methods.presets.triattention import TriAttention
from cask_methods.presets.wrapping import Wrapping
from cask_methods.scorers import by_name
from cask_methods.scorers.recency import RecencyScorer
from cask_methods.selectors.mass import CREDIT
from cask_methods.selectors.mass_segments import MassSegments
from cask_methods.selectors.mass_segments_faithful import MassSegmentsFaithful
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single, statistics

from cask_eval.engine.contract import Host, Needs
from cask_eval.errors import MethodError

SMALL = {"window": 4, "step": 0.1, "shortest": 4, "longest": 12, "floor": 3, "sink": 2, "last": 3}
WRAPPING = [AMS, AMSFaithful, DPP, FacilityLocation]


class NeverEnds(Exception):
    pass


def published_mass(e, at, window, found_of, decay=0.8, mix=0.7):
    """The smoothed mass and the new credit. found_of: evidence of every head of the layer, for the padding."""
    n = int(e.resident[at].sum())
    old = max(0, n - window)
    top = max((x for found in found_of for x in found), default=0.0)
    found = found_of[at[2]][:old] + [top] * (n - old)
    mass = [max(x, 0) + 1e-12 for x in found]
    mass = [m / sum(mass) for m in mass]
    credit = [decay * c + (1 - decay) * m for c, m in zip(e.traits[CREDIT][at].tolist()[:n], mass, strict=True)]
    smooth = [mix * m + (1 - mix) * c / sum(credit) for m, c in zip(mass, credit, strict=True)]
    return [m / sum(smooth) for m in smooth], credit


def published_evidence(e, layer, row, window):
    """[H][older than the window]: the row's softmax, averaged over queries, pooled by 5, averaged over the group."""
    out = []
    for head in range(e.geometry.kv_heads):
        n = int(e.resident[layer, row, head].sum())
        old = max(0, n - window)
        lines = attention_oracle.rows(e, layer, row, head, window)
        existing = max(1, sum(p >= 0 for p in e.query_positions[row].tolist()[-window:]))
        pooled = []
        for group in lines:
            mean = [sum(line[i] for line in group) / existing for i in range(old)]
            pooled.append([sum(mean[max(0, i - 2) : i + 3]) / 5 for i in range(old)])
        out.append([sum(column) / len(pooled) for column in zip(*pooled, strict=True)])
    return out


def published_segments(mass, step, shortest, longest):
    """[(begin, end)]: cut by mass, cut by length, merge forwards."""
    cuts, total, k = [0], 0.0, 1
    for i, m in enumerate(mass):
        total += m
        crossed = False
        while k * step < 1 - 1e-9 and total >= k * step - 1e-12:
            crossed, k = True, k + 1
        if crossed and i:
            cuts.append(i)
    pieces = []
    for a, b in zip(cuts, [*cuts[1:], len(mass)], strict=True):
        while b - a > longest:
            pieces.append((a, a + longest))
            a += longest
        pieces.append((a, b))
    out, begin = [], None
    for a, b in pieces:
        begin = a if begin is None else begin
        if b - begin >= shortest:
            out.append((begin, b))
            begin = None
    if begin is not None:
        out.append((begin, len(mass)))
    return out


def circle(quotas, off, allowed):
    """±1 in a circle from segment 0 until the sum is right. Raises NeverEnds after a whole turn without effect."""
    sign = 1 if off > 0 else -1
    while off:
        before = off
        for i in range(len(quotas)):
            if off and allowed(i, quotas[i]):
                quotas[i] += sign
                off -= sign
        if off == before:
            raise NeverEnds
    return quotas


def published_quotas(sizes, masses, budget, floor):
    quotas = [min(s, floor) for s in sizes]
    if sum(quotas) >= budget:
        return circle(quotas, budget - sum(quotas), lambda i, q: q > 1)
    rest = budget - sum(quotas)
    quotas = [min(s, q + round(rest * m / sum(masses))) for s, q, m in zip(sizes, quotas, masses, strict=True)]
    off = budget - sum(quotas)
    return circle(quotas, off, (lambda i, q: q < sizes[i]) if off > 0 else (lambda i, q: q > 1))


def published_event(mass, scores, budget, *, step, shortest, longest, floor, sink, last, **_):
    n = len(mass)
    bounds = published_segments(mass, step, shortest, longest)
    quotas = published_quotas([b - a for a, b in bounds], [sum(mass[a:b]) for a, b in bounds], budget, floor)

    def ranked(some):
        return sorted(some, key=lambda i: (-scores[i], i))

    chosen = set()
    for (a, b), q in zip(bounds, quotas, strict=True):
        chosen |= set(ranked(range(a, b))[:q])
    forced = {i for i in range(n) if i < sink or i >= n - last}
    others = ranked(chosen - forced)
    kept = forced | set(others[: budget - len(forced)])
    broken = sum(len(kept & set(range(a, b))) < q for (a, b), q in zip(bounds, quotas, strict=True))
    return kept, len(bounds), broken


def case(lengths=(60, 33, 13), seed=0, **kw):
    e = entries(geometry(head_dim=8), lengths, (0,) * len(lengths), seed=seed, needs=Needs(4, {CREDIT: TRAIT}), **kw)
    scores = torch.randn(e.positions.shape, generator=torch.Generator().manual_seed(seed))
    quota = torch.tensor([max(7, n // 2) for n in lengths])[None, :, None].expand(scores.shape[:-1])
    return e, scores, e.resident, quota


TRAIT = MassSegmentsFaithful().needs.traits[CREDIT]


# --- as published ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("change", [{}, {"floor": 1}, {"longest": 5}, {"step": 0.02, "shortest": 6}])
def test_as_published_equals_its_description(seed, change):
    e, scores, candidates, quota = case(seed=seed)
    options = {**SMALL, **change}
    got = MassSegmentsFaithful(**options).select(scores, candidates, quota, e)
    counted = {r: [0, 0] for r in range(3)}
    for layer in range(3):
        for r in range(3):
            found = published_evidence(e, layer, r, 4)
            for h in range(2):
                at = (layer, r, h)
                mass, credit = published_mass(e, at, 4, found)
                n = len(mass)
                assert got.traits[CREDIT][at].tolist()[:n] == pytest.approx(credit, abs=1e-6)
                kept, count, broken = published_event(mass, scores[at].tolist(), int(quota[at]), **options)
                assert set(got.keep[at].nonzero().flatten().tolist()) == kept
                counted[r][0] += count
                counted[r][1] += broken
    for r in range(3):
        count, broken = counted[r]
        assert float(got.measures["segments"][r]) == pytest.approx(count / 6)
        assert float(got.measures["broken_quotas"][r]) == pytest.approx(broken / count)
    assert bool((got.measures["broken_quotas"] > 0).any())  # the defect is reproduced


@dataclasses.dataclass(frozen=True)
class Given(MassSegmentsFaithful):
    mass: torch.Tensor | None = None

    def _mass(self, entries):
        return self.mass, self.mass.float()


@given(st.integers(0, 2**32 - 1), st.integers(4, 60), st.integers(1, 8), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_any_published_event_equals_its_description_or_would_never_end(seed, n, shortest, floor):
    """Dyadic masses and tied scores. Where the circles of the description find nothing to do, an error is raised."""
    g = torch.Generator().manual_seed(seed)
    raw = torch.randint(1, 64, (n,), generator=g).double() ** int(torch.randint(3, (1,), generator=g))
    raw[-1] += 2 ** math.ceil(math.log2(float(raw.sum()))) - raw.sum()
    mass = raw / raw.sum()
    scores = torch.randint(5, (n,), generator=g).float()
    sink, last = (int(x) for x in torch.randint(3, (2,), generator=g))
    budget = int(torch.randint(max(1, min(n, sink + last)), n + 1, (1,), generator=g))
    options = {
        "step": [0.01, 0.05, 0.3][int(torch.randint(3, (1,), generator=g))],
        "shortest": shortest,
        "longest": shortest + int(torch.randint(9, (1,), generator=g)),
        "floor": floor,
        "sink": sink,
        "last": last,
    }
    e = entries(geometry(layers=1, kv_heads=1, head_dim=4), (n,), (0,))
    selector = Given(**options, mass=mass.view(1, 1, 1, n))
    args = (scores.view(1, 1, 1, n), e.resident, torch.tensor([[[budget]]]), e)
    try:
        want, count, broken = published_event(mass.tolist(), scores.tolist(), budget, **options)
    except NeverEnds:
        with pytest.raises(MethodError, match="does not terminate"):
            selector.select(*args)
        return
    got = selector.select(*args)
    assert set(got.keep.flatten().nonzero().flatten().tolist()) == want and len(want) == budget
    assert float(got.measures["segments"]) == count
    assert float(got.measures["broken_quotas"]) == pytest.approx(broken / count)


def test_the_hang_is_an_error_and_ours_is_not():
    """Flat mass, 4096 entries, step 0.005, 64 to keep: more segments than entries."""
    n = 4096
    e = entries(geometry(layers=1, kv_heads=1, head_dim=4), (n,), (0,), scattered=False)
    mass = torch.full((1, 1, 1, n), 1 / n, dtype=torch.float64)
    args = (torch.zeros(1, 1, 1, n), e.resident, torch.tensor([[[64]]]), e)
    with pytest.raises(MethodError, match=r"does not terminate here: \d+ segments .* budget of 64"):
        Given(step=0.005, mass=mass).select(*args)


def test_quotas_are_rounded_half_to_even():
    """Two segments of equal mass share 5: 2.5 each rounds to 2, and the circle gives the first one more."""
    size, weights = torch.tensor([[8, 8, 0]]), torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    got = MassSegmentsFaithful(floor=0)._quotas(size, weights, torch.tensor([5]))
    assert got.tolist() == [[3, 2, 0]]
    got = MassSegmentsFaithful(floor=0)._quotas(size, weights, torch.tensor([7]))
    assert got.tolist() == [[3, 4, 0]]  # 3.5 rounds to 4 twice; the circle takes 1 back from the first


def test_the_newest_are_given_the_layers_maximum():
    e, *_ = case()
    e = dataclasses.replace(e, traits={CREDIT: torch.zeros_like(e.traits[CREDIT])})
    mass, _ = MassSegmentsFaithful(**SMALL)._mass(e)
    for r, n in enumerate((60, 33, 13)):
        newest = mass[:, r, :, n - 4 : n]
        assert torch.allclose(newest, newest[..., :1].expand_as(newest))
        # No older entry exceeds its padding, and in one head of every layer the best equals it.
        assert bool((mass[:, r, :, : n - 4] <= newest[..., :1] + 1e-12).all())
        assert bool(torch.isclose(mass[:, r, :, : n - 4].amax(-1), newest[..., 0]).any(-1).all())


def test_a_batch_of_published_events_equals_singles():
    e, scores, candidates, quota = case()
    batch = MassSegmentsFaithful(**SMALL).select(scores, candidates, quota, e)
    assert (batch.keep.sum(-1) == quota).all()
    for r in range(3):
        alone = single(e, r)
        n = alone.positions.shape[-1]
        got = MassSegmentsFaithful(**SMALL).select(
            scores[:, r : r + 1, :, :n], candidates[:, r : r + 1, :, :n], quota[:, r : r + 1], alone
        )
        assert torch.equal(got.keep, batch.keep[:, r : r + 1, :, :n])


def test_protection_from_outside_and_forced_entries_beyond_the_budget_are_refused():
    e, scores, candidates, quota = case()
    with pytest.raises(MethodError, match="no protection but its own"):
        MassSegmentsFaithful(**SMALL).select(scores, candidates & (e.positions > 2), quota, e)
    with pytest.raises(MethodError, match="forces 4 first and 9 last entries in, more than the least budget, 7"):
        MassSegmentsFaithful(**{**SMALL, "sink": 4, "last": 9}).select(scores, candidates, quota, e)


def test_scores_shared_over_heads_still_have_segments_of_their_own():
    e, scores, candidates, quota = case()
    got = MassSegmentsFaithful(**SMALL).select(scores[:, :, :1], candidates[:, :, :1], quota[:, :, :1], e)
    want = MassSegmentsFaithful(**SMALL).select(scores[:, :, :1].expand(scores.shape), candidates, quota, e)
    assert torch.equal(got.keep, want.keep) and not torch.equal(got.keep[:, :, 0], got.keep[:, :, 1])


# --- the presets ---


def bound(method, geo, tmp_path):
    path = tmp_path / "s.safetensors"
    statistics(geo).save(path)
    return method.bind(Host(geo, str(path)))


def scaled(preset, scorer):
    """The preset in a size for the small cases."""
    small = (
        {"window": 4, "mass_step": 0.1, "l_min": 4, "l_max": 12, "q_min": 2} if "l_min" in preset.parameters() else {}
    )
    return preset(scorer_=scorer, sink=1, recent=8, **small)


@pytest.mark.parametrize("scorer", by_name.NAMES)
@pytest.mark.parametrize("preset", WRAPPING)
def test_every_preset_wraps_every_scorer(preset, scorer, tmp_path):
    """Counts are exact, what is protected stays, batches equal singles."""
    geo = geometry()
    method = scaled(preset, scorer)
    method.validate("x")
    policy = bound(method, geo, tmp_path)
    e = entries(geo, (50, 36, 30), (4, 3, 2), needs=policy.needs)
    target = torch.tensor([30, 24, 20])
    after = policy.compress(e, target)
    assert (after.keep.sum(-1) == target[None, :, None]).all() and not (after.keep & ~e.resident).any()
    assert not (method.protected(e, target) & ~after.keep).any()
    assert (
        not ((e.positions == 0) & ~after.keep).any()
        and not (
            e.resident & (e.positions >= (e.length - 8).view(1, -1, 1, 1)) & ~after.keep & (preset is not AMSFaithful)
        ).any()
    )
    assert all(bool(torch.isfinite(m).all()) and m.shape == (3,) for m in after.measures.values())
    for r in range(3):
        alone = single(e, r)
        got = policy.compress(alone, target[r : r + 1])
        assert torch.equal(got.keep[:, 0], after.keep[:, r, :, : alone.positions.shape[-1]])


@pytest.mark.parametrize("mode", ["per_layer_head", "per_head", "global"])
@pytest.mark.parametrize("preset", [DPP, FacilityLocation, Alpha])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_null_settings_are_triattention(preset, mode, seed, tmp_path_factory):
    geo, tmp_path = geometry(), tmp_path_factory.mktemp("s")
    e = entries(geo, seed=seed)
    # Keys drawn from a few make tied scores.
    e = dataclasses.replace(e, keys=e.keys.nan_to_num().sign())
    target = torch.tensor([12, 9, 6])
    (name,) = (k for k, f in preset.parameters().items() if "null" in f.metadata)
    assert preset.reference == "triattention"
    null = preset.make("x", {name: "0", "mode": mode})
    want = bound(TriAttention(mode=mode), geo, tmp_path).compress(e, target).keep
    assert torch.equal(bound(null, geo, tmp_path).compress(e, target).keep, want)
    e = entries(geo, seed=seed)
    changed = preset.make("x", {name: "2", "mode": mode})
    assert bound(changed, geo, tmp_path).compress(e, target).keep.sum() == want.sum()


def test_parameters_reach_the_selectors():
    made = AMS.make("ams", {"window": 3, "mass_step": "0.05", "l_min": 5, "l_max": 9, "q_min": 1, "pad": "mean"})
    assert made.selector() == MassSegments(3, 0.05, 5, 9, 1, "mean", 0.8, 0.7, "mass")
    assert AMS().selector() == MassSegments()
    assert AMSFaithful().selector() == MassSegmentsFaithful()
    made = AMSFaithful.make("ams_faithful", {"sink": 1, "recent": 2, "decay": "0.5", "mix": "1"})
    assert made.selector() == MassSegmentsFaithful(sink=1, last=2, decay=0.5, mix=1.0)
    made = FacilityLocation.make("f", {"weight": "2", "eta": "0", "clients": "scores", "tau": "1", "space": "keys"})
    assert dataclasses.astuple(made.selector())[:5] == (2.0, 0.0, "1", "keys", "scores")
    made = DPP.make("d", {"weight": "2", "theta": "0", "tau": "1", "space": "keys"})
    assert dataclasses.astuple(made.selector()) == (2.0, 0.0, "1", "keys")


def test_defaults_are_the_published_ones_and_a_quarter_of_them():
    ours, theirs = AMS(), AMSFaithful()
    for name in ("window", "l_min", "l_max", "q_min", "recent", "delta"):
        assert 4 * getattr(ours, name) == getattr(theirs, name)
    for name in ("mass_step", "decay", "mix", "sink"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert theirs.schedule(512).trigger == "periodic" and theirs.schedule(512).prompt == "compete"
    # A prompt above the target waits for no period.
    assert theirs.schedule(512).compresses_prompt(513) and not theirs.schedule(512).compresses_prompt(512)
    assert "right after a prompt above target" in AMSFaithful.parameters()["trigger"].metadata["doc"]
    assert ours.schedule(64).prompt == "pinned"
    assert any("the prompt is pinned by default" in said for said in AMS.deviations)


@pytest.mark.parametrize(
    ("preset", "params", "says"),
    [
        (AMS, {"l_min": 16, "l_max": 30}, "l_max is 30; with l_min 16 it must be at least 31"),
        (AMS, {"decay": "1.5"}, "decay is 1.5; it must be at most 1"),
        (AMSFaithful, {"mix": "1.5"}, "mix is 1.5; it must be at most 1"),
        (AMS, {"mass_step": "0"}, "at least 0.0001"),
        (AMS, {"scorer": "attention"}, "use one of triattention, tova"),
        (AMS, {"scorer": "tova", "mode": "global"}, "takes no notice of mode"),
        (AMS, {"scorer": "snapkv", "recent": 7}, "recent is 7; with scorer 'snapkv' it must be at least 8"),
        (DPP, {"scorer": "r_kv"}, "recent is 0; with scorer 'r_kv' it must be at least 8"),
        (DPP, {"weight": "0", "theta": "0"}, "both 0"),
        (FacilityLocation, {"weight": "0", "eta": "0"}, "both 0"),
        (AMSFaithful, {"prompt": "pinned"}, "use one of compete"),
    ],
)
def test_senseless_parameters_are_refused(preset, params, says):
    with pytest.raises(MethodError, match=says):
        preset.make("x", params)


def test_a_budget_that_the_forced_entries_fill_is_refused_beforehand():
    with pytest.raises(MethodError, match="36 are protected"):
        AMSFaithful().check(100, 36)
    AMSFaithful().check(100, 37)
    with pytest.raises(MethodError, match="raise|Raise"):
        AMS().check(100, 64)


def test_only_what_needs_statistics_asks_for_them():
    for preset in WRAPPING:
        assert preset().calibrated and not scaled(preset, "keydiff").calibrated
    with pytest.raises(MethodError, match="calibration"):
        AMS().bind(Host(geometry()))
    AMS(scorer_="keydiff").bind(Host(geometry()))
    assert AMS.calibrator(geometry()) is not None


def test_what_is_remembered_is_charged():
    """8 queries of 4 heads and 3 layers, and 4 bytes of credit per entry; the control remembers nothing."""
    geo = geometry()
    held = AMS(scorer_="keydiff").footprint(geo)
    assert held.fixed_bytes == 8 * 3 * 4 * 16 * 4 and held.trait_bytes == 4
    held = AMS(scorer_="keydiff", mix=1.0).footprint(geo)
    assert held.trait_bytes == 0 and held.fixed_bytes > 0
    held = AMS(scorer_="keydiff", segmentation="uniform").footprint(geo)
    assert held.trait_bytes == held.fixed_bytes == 0
    assert AMS(scorer_="expected_attention").footprint(geo).fixed_bytes == 256 * 3 * 4 * 16 * 4


def test_scorers_by_name():
    assert by_name.build("recency") == RecencyScorer()
    assert [by_name.build(n).name for n in by_name.NAMES] == list(by_name.NAMES)
    with pytest.raises(MethodError, match="'attention'; use one of triattention"):
        by_name.build("attention")


def test_events_in_a_row_carry_the_credit():
    """The second event of the mended AMS differs from one without memory."""
    geo = geometry()
    policy = AMS(scorer_="recency", window=4, mass_step=0.1, l_min=3, l_max=12, recent=0, sink=0).bind(Host(geo))
    e = entries(geo, (60,), (0,), needs=policy.needs, seed=3)
    e = dataclasses.replace(e, traits={CREDIT: torch.zeros_like(e.traits[CREDIT])})
    first = policy.compress(e, torch.tensor([40]))
    kept = first.keep
    assert torch.allclose(first.entries.traits[CREDIT].sum(-1), torch.tensor(0.2))

    def compact(x):
        return x[kept].view(*x.shape[:3], 40, *x.shape[4:])

    again = dataclasses.replace(
        e,
        **{k: compact(getattr(e, k)) for k in ("keys", "values", "positions")},
        traits={CREDIT: compact(first.entries.traits[CREDIT])},
        queries=e.queries.flip(3) * 3,
    )
    second = policy.compress(again, torch.tensor([20]))
    credit = second.entries.traits[CREDIT]
    assert bool((credit > 0.8 * again.traits[CREDIT]).all())
    blank = dataclasses.replace(again, traits={CREDIT: torch.zeros_like(credit)})
    assert not torch.equal(policy.compress(blank, torch.tensor([20])).keep, second.keep)


def test_wrapping_is_triattention_until_told_otherwise():
    assert Wrapping(mode="global").scorer() == TriAttention(mode="global").scorer()
