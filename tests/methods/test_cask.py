"""CASK's events against a plain oracle, and the preset through whole sequences of events."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import cask_oracle
import pytest
import torch
from cask_methods.presets.cask import Cask
from cask_methods.rotary import rotate
from cask_methods.scorers.staged import Staged
from cask_methods.scorers.triattention import OFFSETS, TriAttentionScorer
from cask_methods.selectors.core import core_budget
from cask_methods.selectors.two_stage import TwoStage, anchors
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import entries, geometry, single, statistics
from safetensors import safe_open

from cask_eval import embedded
from cask_eval.engine.contract import Entries, Host, bound
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry as engine_geometry
from cask_eval.engine.model import load_model
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import MethodError
from cask_eval.schedule import Book, Schedule

MARKS = ((3,), (5, 7))
WORDS = {"\n": [3], "\n\n": [3, 3], "Therefore": [5, 7], " Therefore": [5, 7], "So": [9], " So": [8], "Hence": []}


def encode(text):
    return WORDS.get(text, [])


@dataclasses.dataclass(frozen=True)
class Table:
    """A scorer whose heads look their scores up by position: integers, so that ties abound."""

    values: torch.Tensor  # [L, H, G, K]

    def heads(self, e, candidates):
        at = e.positions.clamp_min(0) % self.values.shape[-1]
        found = self.values.movedim(-1, 0)[at[0, :, 0]]  # [R, n, L, H, G]
        return found.movedim((0, 1), (1, 4)).masked_fill(~candidates.unsqueeze(-2), 0)

    def score(self, e, candidates):
        return self.heads(e, candidates).amax((0, 2, 3))[None, :, None]


def case_entries(rule, lengths, prompts, budget, count_prompt, seed, geo, hubs=4, noise=0.02, levels=6):
    """Resident entries just before an event, with keys from few hubs before rotation, and a scorer with many ties."""
    e = entries(geo, lengths, prompts, seed, needs=rule.needs, vocabulary=10)
    g = torch.Generator().manual_seed(seed + 1)
    centres = torch.randn(hubs, geo.head_dim, generator=g)
    which = torch.randint(hubs, e.positions[:1, :, :1].shape, generator=g)
    keys = (
        centres[which]
        + noise * torch.randn(e.keys.shape, generator=g) * (torch.rand(which.shape, generator=g) < 0.5)[..., None]
    )
    keys = rotate(keys.expand_as(e.keys), e.positions, geo)
    keys = keys.masked_fill(~e.resident.unsqueeze(-1), torch.nan)
    schedule = Schedule("slack", budget, 1, "two_stage", count_prompt=count_prompt, recent=rule.recent)
    done = [schedule.event(n, min(p, n), p) for n, p in zip(lengths, prompts, strict=True)]
    traits = dict(e.traits)
    if rule.gaps:
        own = e.positions[:1, :, :1].int()
        previous = torch.cat([own[..., :1] * 0 - 1, own[..., :-1]], -1)
        reach = (torch.rand(own.shape, generator=g) * (own - previous)).int().minimum(own - previous - 1)
        told = torch.rand(own.shape, generator=g) < 0.5
        traits["span_low"] = torch.where(told & (own >= 0), own - reach, -1)
        traits["span_high"] = torch.where(told & (own >= 0), own, -1)
    e = replace(
        e,
        keys=keys,
        traits=traits,
        prefix=e.prompt_tokens.minimum(torch.tensor(lengths)),
        prefix_kept=torch.tensor([d.prefix for d in done]),
    )
    voters = Table(torch.randint(levels, (geo.layers, geo.kv_heads, geo.groups, 29), generator=g).float() - levels / 2)
    return e, torch.tensor([d.resident for d in done]), voters


def oracle(rule, e, voters, row, budget, count_prompt):
    """The oracle's word on one row of what `case_entries` made."""
    one = single(e, row)
    n, geo = one.positions.shape[-1], one.geometry
    positions = one.positions[0, 0, 0].tolist()
    heads = voters.heads(one, one.resident).flatten(2, 3).flatten(0, 2).tolist()
    keys = [[one.keys[x, 0, h].tolist() for h in range(geo.kv_heads)] for x in range(geo.layers)]
    inv, u = geo.inv_freq.tolist(), []
    for j in range(n):
        units = []
        for layer in keys:
            for head in layer:
                plain = cask_oracle.unrotated(head[j], positions[j], inv)
                size = math.sqrt(sum(x * x for x in plain))
                units.append([x / size if size else 0.0 for x in plain])
        u.append([sum(x) / len(units) for x in zip(*units, strict=True)])

    def trait(name, otherwise):
        return one.traits[name][0, 0, 0].tolist() if name in one.traits else otherwise

    # Where no spans are kept, nothing generated was ever evicted: each begins right behind the one before.
    behind = [positions[0], *(p + 1 for p in positions[:-1])]
    phase = cask_oracle.phases(one.tokens[0].tolist(), int(one.prompt_tokens), MARKS)
    return cask_oracle.event(
        {
            "rule": {**dataclasses.asdict(replace(rule, voters=None)), "count_prompt": count_prompt},
            "n": n,
            "prefix": int(one.prefix),
            "budget": budget,
            "heads": heads,
            "s": [max(h[j] for h in heads) for j in range(n)],
            "u": u,
            "values": [one.values[x, 0, h].tolist() for x in range(geo.layers) for h in range(geo.kv_heads)],
            "phase": {j: phase[positions[j]] for j in range(n)},
            "count": trait("count", [1] * n),
            "low": [x if x >= 0 else p for x, p in zip(trait("span_low", behind), positions, strict=True)],
            "high": [x if x >= 0 else p for x, p in zip(trait("span_high", positions), positions, strict=True)],
        }
    )


def agrees(rule, e, target, voters, budget, count_prompt):
    """Select, and compare every row with the oracle. Returns what was selected."""
    rule = replace(rule, voters=voters, marks=MARKS)
    resident = e.resident[:1, :, :1]
    got = rule.select(voters.score(e, e.resident), resident, target[None, :, None], e)
    for row in range(len(target)):
        want = oracle(rule, e, voters, row, budget, count_prompt)
        if want["close"]:
            continue
        assert set(got.keep[0, row, 0].nonzero().flatten().tolist()) == want["keep"]
        for name, values in got.measures.items():
            if want["measures"] is None:
                assert math.isnan(values[row])
            else:
                assert float(values[row]) == pytest.approx(want["measures"][name], abs=1e-5), name
        if not rule.merge:
            assert got.into is None
            continue
        into = got.into[0, row, 0].tolist()
        assert {j: i for j, i in enumerate(into) if i >= 0} == want["into"]
        assert ("span_low" in got.traits) <= rule.gaps
        if not rule.gaps:
            continue
        own = e.positions[0, row, 0].tolist()
        for name, side in (("span_low", 0), ("span_high", 1)):
            values = {**e.traits, **got.traits}[name][0, row, 0].tolist()
            for j, span in want["spans"].items():
                assert (values[j] if values[j] >= 0 else own[j]) == span[side]
            for j in want["keep"] - set(want["spans"]):
                before = int(e.traits[name][0, row, 0, j])
                assert (values[j] if values[j] >= 0 else own[j]) == (before if before >= 0 else own[j])
    return got


RULES = st.builds(
    TwoStage,
    recent=st.integers(0, 6),
    coverage=st.sampled_from([0.0, 0.0625, 0.3, 1.0]),
    core_ratio=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    min_core=st.integers(0, 3),
    core_mode=st.sampled_from(["vote", "score"]),
    core=st.sampled_from(["demote", "hard"]),
    local_window=st.sampled_from([0, 2, 5, 32]),
    similarity=st.sampled_from([0.985, 0.9999, 0.5, -1.0]),
    similarity_role=st.sampled_from(["rank", "rank", "forbid"]),
    gate=st.sampled_from([0.0, 0.0, 1.0, 2.5]),
    distance=st.sampled_from([0.0, 0.0, 2.0, 4.0]),
    promotion=st.sampled_from([0.0, 0.0, 0.9, 0.5]),
    phases=st.booleans(),
    merge=st.sampled_from([True, True, True, False]),
    representative=st.sampled_from(["score_max_source", "weighted_latest"]),
)


@given(st.data(), RULES, st.integers(0, 2**31), st.booleans())
@settings(max_examples=150, deadline=None)
def test_equals_the_plain_oracle(data, rule, seed, count_prompt):
    budget = data.draw(st.integers(2, 14))
    lengths = data.draw(st.lists(st.integers(budget + 1, budget + 16), min_size=1, max_size=3))
    prompts = [data.draw(st.integers(0, n - 1)) for n in lengths]
    geo = geometry(layers=2, kv_heads=2, groups=2, head_dim=4)
    e, target, voters = case_entries(rule, lengths, prompts, budget, count_prompt, seed, geo)
    agrees(rule, e, target, voters, budget, count_prompt)


@pytest.mark.parametrize("core", ["demote", "hard"])
@pytest.mark.parametrize("representative", ["score_max_source", "weighted_latest"])
def test_equals_the_oracle_where_runs_outnumber_slots(core, representative):
    """Few free slots and a large core: phases are dropped, the core is demoted or descriptors are evicted."""
    rule = TwoStage(recent=2, core_ratio=0.8, core=core, representative=representative)
    demoted = dropped = 0
    for seed in range(12):
        e, target, voters = case_entries(rule, (40, 33, 27), (3, 0, 6), 14, True, seed, geometry(layers=2, head_dim=4))
        got = agrees(rule, e, target, voters, 14, True)
        demoted += float(got.measures["core_demoted"].sum())
        dropped += float(got.measures["dropped"].sum())
    assert (demoted > 0) == (core == "demote") and (dropped > 0) == (core == "hard")


@given(
    st.integers(0, 2**31),
    st.sampled_from(["demote", "hard"]),
    st.sampled_from([0.0, 1.5, 2.0, 2.5, 3.0]),
    st.sampled_from([0.0, 2.5, 3.0]),
    st.sampled_from([-1.0, 0.2, 0.6]),
    st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=120, deadline=None)
def test_equals_the_oracle_where_vetoes_force_relaxation(seed, core, gate, distance, similarity, promotion):
    rule = TwoStage(
        recent=2,
        core=core,
        gate=gate,
        distance=distance,
        similarity=similarity,
        similarity_role="forbid",
        promotion=promotion,
    )
    geo = geometry(layers=1, kv_heads=2, groups=1, head_dim=4)
    e, target, voters = case_entries(rule, (26, 22), (0, 2), 18, True, seed, geo, hubs=3, levels=4)
    agrees(rule, e, target, voters, 18, True)


@pytest.mark.parametrize("veto", [{"similarity": 1.0, "similarity_role": "forbid"}, {"distance": 1e-3}])
def test_a_core_is_not_given_up_where_that_makes_nothing_fit(veto):
    """Keys or values so unlike that little or nothing may fold: descriptors are evicted either way, the core stays."""
    rule, kept = TwoStage(recent=2, core="demote", **veto), 0
    for seed in range(6):
        e, target, voters = case_entries(rule, (40, 33), (3, 0), 14, True, seed, geometry(layers=2, head_dim=4), hubs=9)
        got = agrees(rule, e, target, voters, 14, True)
        assert (got.measures["dropped"] > 0).all() and (got.measures["core_demoted"] == 0).all()
        kept += int(got.measures["core_size"].sum())
    assert kept > 0


def test_a_core_is_demoted_as_far_as_similarity_needs():
    """Keys of the core and its neighbours are alike: without some of the core, fewer runs hold the same entries."""
    rule = TwoStage(recent=2, core_ratio=0.8, similarity=0.9, similarity_role="forbid", core="demote")
    geo = geometry(layers=2, head_dim=4)
    demoted = whole = 0
    for seed in range(12):
        # Nearly one direction for all: what keeps them apart is the core.
        e, target, voters = case_entries(rule, (40, 33), (3, 0), 14, True, seed, geo, hubs=1)
        got = agrees(rule, e, target, voters, 14, True)
        assert (got.measures["dropped"] == 0).all()
        demoted += int((got.measures["core_demoted"] > 0).sum())
        whole += int((got.measures["core_size"] > 0).sum())
    assert demoted > 0 and whole > 0


def test_adversarial_input():
    """Zero keys, identical keys, one spike, all scores alike."""
    geo = geometry(layers=2, head_dim=4)
    rule = TwoStage(recent=2)
    for kind in ("zero", "same", "spike"):
        e, target, voters = case_entries(rule, (24, 15), (4, 2), 12, True, 5, geo, levels=1)
        keys = torch.zeros_like(e.keys) if kind != "same" else torch.ones_like(e.keys)
        if kind == "spike":
            keys[:, :, :, 9] = 1e18
        e = replace(e, keys=keys.masked_fill(~e.resident.unsqueeze(-1), torch.nan))
        agrees(rule, e, target, voters, 12, True)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_what_is_not_finite(bad):
    rule = TwoStage(recent=2, core_mode="score")
    e, target, voters = case_entries(rule, (24,), (4,), 12, True, 5, geometry(layers=2, head_dim=4))
    broken = e.keys.clone()
    broken[1, 0, 0, 8] = bad
    with pytest.raises(FloatingPointError, match="keys"):
        agrees(rule, replace(e, keys=broken), target, voters, 12, True)
    scores = voters.score(e, e.resident).index_fill(3, torch.tensor(8), bad)
    with pytest.raises(FloatingPointError, match="scores"):
        replace(rule, marks=()).select(scores, e.resident[:1, :, :1], target[None, :, None], e)


def test_what_it_cannot_work_with():
    rule = TwoStage()
    e, target, voters = case_entries(rule, (24,), (4,), 12, True, 5, geometry(layers=2, head_dim=4))
    scores, resident, quota = voters.score(e, e.resident), e.resident[:1, :, :1], target[None, :, None]
    with pytest.raises(MethodError, match="prompt 'two_stage'"):
        rule.select(scores, resident, quota, replace(e, prefix=None))
    with pytest.raises(MethodError, match="shared scores"):
        rule.select(scores.expand(-1, -1, 2, -1), resident, quota, e)
    with pytest.raises(MethodError, match="bind the method"):
        replace(rule, voters=voters).select(scores, resident, quota, e)
    with pytest.raises(MethodError, match="set the parameter phases to false"):
        rule.bind(Host(e.geometry))
    assert rule.bind(Host(e.geometry, encode=encode)).marks == ((3,), (3, 3), (5, 7), (9,), (8,))
    assert replace(rule, phases=False).bind(Host(e.geometry)).marks == ()


@pytest.mark.parametrize(
    ("slots", "pool", "ratio", "least", "want"),
    [
        (64, 130, 0.5, 1, 32),
        (2, 130, 0.5, 1, 1),
        (5, 130, 0.5, 1, 2),  # 2.5 to even
        (7, 130, 0.5, 1, 4),  # 3.5 to even
        (2, 130, 0.0, 1, 1),
        (2, 130, 0.0, 5, 1),
        (9, 130, 0.0, 5, 5),
        (9, 130, 1.0, 1, 8),  # one slot is left
        (9, 10, 1.0, 0, 8),
    ],
)
def test_core_budget(slots, pool, ratio, least, want):
    assert core_budget(torch.tensor([slots]), torch.tensor([pool]), ratio, least).tolist() == [want]


@given(st.integers(1, 400), st.data(), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_anchors_are_a_rounded_linspace(prefix, data, coverage):
    kept = data.draw(st.integers(0, prefix - 1))
    got = anchors(torch.tensor([prefix]), torch.tensor([kept]), coverage, prefix + 3)[0].nonzero().flatten().tolist()
    count = min(kept // 2, round(coverage * kept))
    want = [0] if count == 1 else [round(i * (prefix - 1) / (count - 1)) for i in range(count)]
    assert got == want and len(set(want)) == count


# -- the scorer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("aggregation", ["mean", "max"])
@pytest.mark.parametrize("budget, count_prompt", [(10, True), (5, True), (7, False), (9, False), (14, False)])
def test_staged_scores_equal_the_formula(normalise, aggregation, budget, count_prompt):
    """S_hj by loops from un-rotated keys, standardised within a stage, then the maximum over all heads. Where the
    prompt leaves too little room for the newest, fewer of them stand aside, as the schedule counts them."""
    geo = geometry(layers=2, kv_heads=2, groups=2, head_dim=4, scaling=1.3)
    stats, recent = statistics(geo, dtype=torch.float64), 3
    # The third sequence has generated fewer than are left alone.
    lengths, prefixes = (14, 9, 6, 13), (5, 4, 4, 7)
    schedule = Schedule("slack", budget, 1, "two_stage", count_prompt=count_prompt, recent=recent)
    done = [schedule.event(n, p, p) for n, p in zip(lengths, prefixes, strict=True)]
    e = replace(
        entries(geo, lengths, (5, 9, 1, 7)),
        prefix=torch.tensor(prefixes),
        prefix_kept=torch.tensor([d.prefix for d in done]),
        target=torch.tensor([d.resident for d in done]),
    )
    scorer = Staged(TriAttentionScorer("global", normalise, aggregation, statistics=stats), recent)
    got = scorer.score(e, e.resident)
    assert got.shape == (1, 4, 1, 14)
    for r, n in enumerate(lengths):
        prefix, best = prefixes[r], [-math.inf] * n
        newest = schedule.newest(done[r].prefix + n - prefix, done[r].prefix)
        older = range(prefix, n - newest) if n - newest > prefix else range(prefix, n)
        for layer in range(2):
            for head in range(4):
                centre = torch.complex(stats.c_re[layer, head], stats.c_im[layer, head])
                m, s = stats.m[layer, head], []
                for j in range(n):
                    p, key = int(e.positions[layer, r, head // 2, j]), e.keys[layer, r, head // 2, j].double()
                    k = torch.complex(key[:2], key[2:]) / geo.scaling * torch.exp(-1j * geo.inv_freq * p)
                    per = [
                        float(
                            (centre * k.conj() * torch.exp(1j * geo.inv_freq * (int(e.length[r]) - p + d))).real.sum()
                        )
                        for d in OFFSETS
                    ]
                    trig = sum(per) / len(per) if aggregation == "mean" else max(per)
                    s.append(geo.scaling**2 * (trig + float(((m - centre.abs()) * k.abs()).sum())))
                for stage, among in ((range(prefix), range(prefix)), (range(prefix, n), older)):
                    mean = sum(s[j] for j in among) / len(among)
                    sigma = max(1e-6, (sum((s[j] - mean) ** 2 for j in among) / len(among)) ** 0.5)
                    for j in stage:
                        best[j] = max(best[j], (s[j] - mean) / sigma if normalise else s[j])
        assert got[0, r, 0, :n].tolist() == pytest.approx(best, abs=1e-4)
        assert not got[0, r, 0, n:].any()


def test_votes_and_scores_are_of_the_same_heads():
    geo = geometry()
    e, stats = replace(entries(geo), target=torch.tensor([12, 9, 6])), statistics(geo)
    scorer = Staged(TriAttentionScorer("global", False, statistics=stats))
    with pytest.raises(MethodError, match="prompt 'two_stage'"):
        scorer.score(replace(e, prefix=None), e.resident)
    heads = scorer.heads(e, e.resident)
    assert heads.shape == (3, 3, 2, 2, 20)
    assert torch.equal(heads.amax((0, 2, 3))[None, :, None], scorer.score(e, e.resident))


# -- the preset --------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    def make(geo):
        statistics(geo).save(tmp_path / "s.safetensors")
        return Host(geo, str(tmp_path / "s.safetensors"), encode)

    return make


class Sequence:
    """One sequence that grows by random tokens under a bound policy, with its cache kept by hand."""

    def __init__(self, policy, budget, prompt, seed=0, dtype=torch.float32):
        self.policy, self.geo, self.dtype = policy, policy.host.geometry, dtype
        self.g = torch.Generator().manual_seed(seed)
        self.schedule = policy.schedule(budget)
        self.book, self.prompt, self.events = Book(self.schedule, prompt), prompt, 0
        geo = self.geo
        self.keys = torch.empty(geo.layers, 1, geo.kv_heads, 0, geo.head_dim, dtype=dtype)
        self.values, self.tokens = self.keys.clone(), torch.empty(1, 0, dtype=torch.int64)
        self.positions = torch.empty(geo.layers, 1, geo.kv_heads, 0, dtype=torch.int64)
        self.traits = {
            k: torch.full((1, 1, 1, 0) if t.shared else self.positions.shape, t.start, dtype=t.dtype)
            for k, t in policy.needs.traits.items()
        }
        self.append(prompt)

    def append(self, count):
        shape = (*self.keys.shape[:3], count, self.geo.head_dim)
        new, values = (torch.randn(shape, generator=self.g).to(self.dtype) for _ in range(2))
        at = torch.arange(count) + self.tokens.shape[1]
        self.keys = torch.cat([self.keys, rotate(new, at, self.geo).to(self.dtype)], 3)
        self.values = torch.cat([self.values, values], 3)
        self.positions = torch.cat([self.positions, at.expand(*self.positions.shape[:3], -1)], 3)
        self.tokens = torch.cat([self.tokens, torch.randint(0, 40, (1, count), generator=self.g)], 1)
        for name, trait in self.policy.needs.traits.items():
            held = self.traits[name]
            fresh = torch.full((*held.shape[:3], count), trait.start, dtype=trait.dtype)
            self.traits[name] = torch.cat([held, fresh], 3)

    def grow(self, tokens):
        """Decode; yields (event of the schedule, entries before, target, compressed) at every event."""
        for _ in range(tokens):
            self.append(1)
            self.book.grow()
            if not self.book.due():
                continue
            prefix = self.book.prefix
            done = self.book.fire()
            e = self.entries(prefix)
            after = self.policy.compress(e, torch.tensor([done.resident]))
            self.place(after)
            self.events += 1
            yield done, e, done.resident, after

    def entries(self, prefix):
        n = torch.tensor([self.tokens.shape[1]])
        return Entries(
            self.keys,
            self.values,
            self.positions,
            torch.tensor([self.prompt]),
            n,
            torch.tensor([1]),
            torch.tensor([self.events]),
            self.geo,
            torch.tensor([prefix]),
            torch.tensor([self.book.prefix]),
            traits=self.traits,
            tokens=self.tokens,
        )

    def place(self, after):
        keep = after.keep[0, 0, 0]
        assert (after.keep == keep).all()
        e = after.entries
        self.keys, self.values, self.positions = e.keys[..., keep, :], e.values[..., keep, :], e.positions[..., keep]
        self.traits = {k: e.traits[k][..., keep] for k in self.policy.needs.traits}


VARIANTS = [
    Cask(delta=16, recent=4),
    Cask(delta=16, recent=4, core="hard", core_mode="score"),
    Cask(delta=16, recent=4, representative="weighted_latest", log_mass=True),
    Cask(delta=16, recent=4, operator="mean", normaliser="published", phases=False),
    Cask(delta=16, recent=4, merge=False),
    Cask(delta=16, recent=4, mass_gate=2.0, value_distance=6.0, promotion=0.8),
    Cask(delta=16, trigger="periodic", count_prompt=False, normalise=False),
    Cask(delta=16, recent=64),
]


@pytest.mark.parametrize("method", VARIANTS, ids=range(len(VARIANTS)))
@pytest.mark.parametrize("budget, prompt", [(32, 12), (16, 40), (24, 0), (8, 8)])
def test_events_in_a_row(method, budget, prompt, host):
    """Counts as the schedule has them, kept keys and values as they were unless folded, tokens conserved."""
    geo = geometry(layers=2, head_dim=8)
    policy = method.bind(host(geo))
    sequence = Sequence(policy, budget, prompt)
    events = 0
    for done, before, target, after in sequence.grow(150):
        events += 1
        assert sequence.keys.shape[3] == target
        same = after.keep[0, 0, 0]
        if method.merge:
            old, new = before.traits["count"][0, 0, 0], after.entries.traits["count"][0, 0, 0]
            same = same & (old == new)
            if method.core == "demote" and not done.guard and not method.value_distance:
                # Nothing generated is ever lost.
                generated = torch.arange(len(old)) >= before.prefix
                assert int(new[after.keep[0, 0, 0] & generated].sum()) == int(old[generated].sum())
            if policy.selector.gaps:
                low, high = (after.entries.traits[k][0, 0, 0] for k in ("span_low", "span_high"))
                own = before.positions[0, 0, 0]
                assert ((low <= own) & ((high == -1) | (high >= own)))[after.keep[0, 0, 0]].all()
            assert ("core_size" in after.measures) == done.stage_two
            if method.log_mass:
                logs = after.entries.traits["log_mass"][0, 0, 0]
                assert torch.allclose(logs, new.float().log())
        assert torch.equal(before.values[..., same, :], after.entries.values[..., same, :])
        assert torch.equal(before.keys[..., same, :], after.entries.keys[..., same, :])
        if method.representative == "score_max_source":
            assert torch.equal(before.keys[..., after.keep[0, 0, 0], :], sequence.keys)
        newest = min(method.recent, before.positions.shape[-1] - int(before.prefix))
        if not done.guard and newest and method.recent < budget - 2:
            assert after.keep[0, 0, 0, -newest:].all()
    assert events > 2


@pytest.mark.parametrize("method", VARIANTS, ids=range(len(VARIANTS)))
def test_a_batch_of_unequal_sequences_equals_singles(method, host):
    """Rows in different states, some in stage one only, some guarded."""
    geo = geometry(layers=2, head_dim=8)
    policy = method.bind(host(geo))
    rule = policy.selector
    lengths, prompts, budget = (60, 41, 33, 30), (12, 36, 0, 31), 26
    e, target, _ = case_entries(rule, lengths, prompts, budget, method.count_prompt, 3, geo)
    if method.log_mass:
        e = replace(e, traits={**e.traits, "log_mass": e.traits["count"].float().log()})
    batch = policy.compress(e, target)
    assert (batch.keep.sum(-1) == target[None, :, None]).all()
    for r in range(len(lengths)):
        alone = single(e, r)
        got, n = policy.compress(alone, target[r : r + 1]), alone.positions.shape[-1]
        assert torch.equal(got.keep[:, 0], batch.keep[:, r, :, :n])
        kept = got.keep[:, 0]
        for a, b in ((got.entries.keys, batch.entries.keys), (got.entries.values, batch.entries.values)):
            assert torch.allclose(a[:, 0][kept], b[:, r, :, :n][kept], atol=1e-6)
        for name in policy.needs.traits:
            assert torch.equal(got.entries.traits[name][:, 0], batch.entries.traits[name][:, r, :, :n])
        for name, value in batch.measures.items():
            alone = got.measures.get(name, torch.tensor([torch.nan]))
            assert torch.allclose(alone.double(), value[r : r + 1].double(), atol=1e-5, equal_nan=True), name


def test_half_precision_caches_are_computed_in_fp32(host):
    geo = geometry(layers=2, head_dim=8)
    policy = Cask(delta=16, recent=4, representative="weighted_latest").bind(host(geo))
    sequence = Sequence(policy, 24, 10, dtype=torch.bfloat16)
    for done, before, target, after in sequence.grow(60):
        exact = replace(before, keys=before.keys.float(), values=before.values.float())
        want = policy.compress(exact, torch.tensor([target]))
        assert torch.equal(want.keep, after.keep) and after.entries.keys.dtype == torch.bfloat16
        assert torch.equal(want.entries.values.bfloat16(), after.entries.values)
        assert torch.equal(want.entries.keys.bfloat16(), after.entries.keys)


@pytest.mark.parametrize("budget", [256, 384])
def test_the_multi_news_witness(budget, host):
    """A prompt of 2691 and 512 tokens: two free slots at each of three events. The published records show no core and
    381 tokens in 6 descriptors; demotion reproduces and reports that, a hard core keeps its entry."""
    geo = geometry(layers=1, kv_heads=1, groups=1, head_dim=4)
    seen = {}
    for core in ("demote", "hard"):
        policy = Cask(core=core).bind(host(geo))
        rows = [after.measures for *_, after in Sequence(policy, budget, 2691).grow(511)]
        rows = [m for m in rows if m]  # the first event evicts prompt entries alone
        names = ("core_size", "core_demoted", "folded", "descriptors", "dropped")
        seen[core] = {k: sum(float(m[k]) for m in rows) for k in names}
        assert len(rows) == 3 and all(float(m["core_size"] + m["descriptors"]) == 2 for m in rows)
    assert seen["demote"] == {"core_size": 0, "core_demoted": 3, "folded": 381, "descriptors": 6, "dropped": 0}
    hard = seen["hard"]
    assert hard["core_size"] == hard["descriptors"] == 3 and hard["core_demoted"] == 0
    assert hard["dropped"] > 0 and hard["folded"] + hard["dropped"] == 378


def test_guards(host):
    geo = geometry(layers=2, head_dim=8)
    policy = Cask(delta=16, recent=4, count_prompt=False, trigger="periodic").bind(host(geo))
    events = [(done, before, after) for done, before, _, after in Sequence(policy, 12, 40).grow(100)]
    # The prompt fills the budget: the last entries stay, and are prompt from then on.
    assert {done.guard for done, *_ in events} == {"prefix_budget_exhausted"}
    for _, before, after in events:
        n = before.positions.shape[-1]
        assert after.keep[0, 0, 0].nonzero().flatten().tolist() == list(range(n - 12, n))
        assert torch.equal(after.entries.values, before.values)
    # One slot beside the prompt and the newest.
    policy = Cask(delta=16, recent=4, count_prompt=False, trigger="periodic").bind(host(geo))
    events = [(done, before, after) for done, before, _, after in Sequence(policy, 12, 7).grow(100)]
    assert {done.guard for done, *_ in events} == {"merge_inactive"}
    for _, before, after in events:
        n = before.positions.shape[-1]
        assert after.keep[0, 0, 0].nonzero().flatten().tolist() == [*range(7), *range(n - 5, n)]


@pytest.mark.parametrize("method", [Cask(delta=24), Cask(delta=24, log_mass=True, representative="weighted_latest")])
def test_in_the_engine_tokens_do_not_depend_on_company(method):
    """On an embedded model: the meters agree (the engine checks), and several sequences at once equal one by one."""
    folder = Path(embedded.__file__).parent / "chain-s"
    model, tokenizer = load_model(folder)
    shape = engine_geometry(model)

    def tokens(text):
        return tokenizer.encode(text, add_special_tokens=False)

    policy = method.bind(Host(shape, str(folder / "calibration.safetensors"), tokens))
    g = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    requests = [
        Request(i, tuple(torch.randint(vocabulary, (n,), generator=g).tolist()), i) for i, n in enumerate((50, 7, 30))
    ]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=90, stop_ids=())
    runs = [
        {
            o.key: (o.output_ids, o.measures, o.residency.entries)
            for o in generate(model, requests, policy, policy.schedule(24), sampling, slots=slots)
        }
        for slots in (1, 3)
    ]
    for key in range(3):
        alone, together = runs[0][key], runs[1][key]
        assert alone[0] == together[0] and alone[2] == together[2]
        assert alone[1] == pytest.approx(together[1], rel=1e-3, abs=1e-3)
        assert alone[1]["kappa_dispersion"] > 0 and alone[1]["log_mass_error"] > 0


@pytest.mark.parametrize("method", [Cask(), Cask(core_mode="score"), Cask(merge=False)])
def test_binding_reads_the_statistics_once(method, host, monkeypatch):
    full, opened = host(geometry()), []

    def counting(path, **options):
        opened.append(path)
        return safe_open(path, **options)

    monkeypatch.setattr("cask_methods.calibration.safe_open", counting)
    policy = method.bind(full)
    assert opened == [full.calibration]
    statistics = policy.scorer.base.statistics
    if method.core_mode == "vote":
        assert policy.selector.voters.base.statistics is statistics
    if method.merge:
        assert policy.representation.statistics is statistics
    # Part by part the same.
    by_parts = [bound(part, full) for part in method.parts()]
    assert [type(p) for p in by_parts] == [type(p) for p in policy.parts]
    assert policy.selector.marks == by_parts[1].marks and (policy.selector.voters is None) == (
        by_parts[1].voters is None
    )


def test_binding_needs_statistics_and_a_tokenizer(host):
    geo = geometry()
    full = host(geo)
    with pytest.raises(MethodError, match="calibrat"):
        Cask().bind(replace(full, calibration=None))
    with pytest.raises(MethodError, match="set the parameter phases to false"):
        Cask().bind(replace(full, encode=None))
    Cask(phases=False).bind(replace(full, encode=None))
    Cask(merge=False).bind(replace(full, encode=None))
    assert Cask().calibrated


def test_what_it_stores():
    geo = geometry()
    assert Cask().footprint(geo).shared_bytes == 4 and Cask().footprint(geo).trait_bytes == 0
    assert Cask(log_mass=True).footprint(geo).shared_bytes == 8
    assert Cask(merge=False).footprint(geo).auxiliary(100) == 0
    assert Cask(merge=False, core="hard").footprint(geo).auxiliary(100) == 0
    # Spans are kept where something generated can be lost.
    for method in (Cask(core="hard"), Cask(similarity_role="forbid"), Cask(value_distance=3.0)):
        assert method.footprint(geo).shared_bytes == 12
    assert Cask(mass_gate=2.0, promotion=0.5).footprint(geo).shared_bytes == 4


@dataclasses.dataclass(frozen=True)
class WithSpans(TwoStage):
    """The selector with spans, even where they cannot matter."""

    gaps = True


@pytest.mark.parametrize(
    "method",
    [
        Cask(delta=16, recent=4),
        Cask(delta=16, recent=4, mass_gate=2.0, promotion=0.8),
        Cask(delta=16, recent=4, trigger="periodic", count_prompt=False),
    ],
)
@pytest.mark.parametrize("window", [0, 3, 32])
def test_spans_matter_only_where_something_is_lost(method, window, host):
    """Without a hard core or vetoes that stay, keeping spans changes no event, whatever the window: they adjoin."""
    policy = replace(method, local_window=window).bind(host(geometry(layers=2, head_dim=8)))
    rule = {f.name: getattr(policy.selector, f.name) for f in dataclasses.fields(TwoStage)}
    full = replace(policy, selector=WithSpans(**rule))
    assert "span_low" in full.needs.traits and "span_low" not in policy.needs.traits
    bare, spanned = Sequence(policy, 24, 6), Sequence(full, 24, 6)
    events = 0
    for (*_, a), (_, before, _, b) in zip(bare.grow(150), spanned.grow(150), strict=True):
        events += 1
        assert torch.equal(a.keep, b.keep) and torch.equal(a.entries.values, b.entries.values)
        own, (low, high) = before.positions[0, 0, 0], (b.entries.traits[k][0, 0, 0] for k in ("span_low", "span_high"))
        low, high = (torch.where(x < 0, own, x)[b.keep[0, 0, 0]][6:] for x in (low, high))
        assert torch.equal(low[1:], high[:-1] + 1)
    assert events > 4


def test_parameters():
    made = Cask.make("cask", {"coverage": "0.125", "merge": False, "trigger": "periodic", "count_prompt": False})
    assert made.schedule(64) == Schedule(
        "periodic", 64, 128, "two_stage", count_prompt=False, overflow="last", recent=8
    )
    assert Cask().schedule(384) == Schedule("slack", 384, 128, "two_stage", overflow="last", recent=8)
    for bad in ({"coverage": "1.5"}, {"core_ratio": "2"}, {"core": "soft"}, {"recent": -1}):
        with pytest.raises(MethodError):
            Cask.make("cask", bad)
    assert all(f.metadata["doc"] and f.metadata["source"] for f in Cask.parameters().values())
