"""A recorded function does what the function did; a recorded decode step gives the tokens of the plain one."""

from dataclasses import replace

import pytest
import torch
from engine_models import build
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import bound, build_on_cuda, requests, run

from cask_eval.engine import decode
from cask_eval.engine.attention import NAME
from cask_eval.engine.flight import _signed
from cask_eval.engine.recorded import NotRecordable, record, tape
from cask_eval.engine.sampling import Sampling
from cask_eval.engine.usage import Usage

CPU = torch.device("cpu")


class Machine:
    """A few buffers, and steps on them of the kinds that a decode step has."""

    def __init__(self, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(4, 4, generator=g)
        self.state = torch.randn(3, 4, generator=g)
        self.count = torch.zeros(3, dtype=torch.int64)
        self.log = torch.zeros(3, 9)

    def step(self) -> torch.Tensor:
        part = self.state[:2]
        hidden = torch.nn.functional.linear(part, self.weight).tanh()
        hidden = torch.cat([hidden, hidden.neg()], -1)[:, 2:6]
        self.log[:2].scatter_(1, self.count[:2, None], hidden[:, :1])
        part.copy_(hidden / hidden.norm(dim=-1, keepdim=True))
        self.count[:2] += 1
        values, at = hidden.sort(dim=-1, descending=True)
        return values + at

    @property
    def all(self):
        return self.state, self.count, self.log


def test_a_tape_does_to_the_same_tensors_what_the_function_did():
    plain, taped = Machine(), Machine()
    first, again = tape(taped.step)
    assert torch.equal(first, plain.step())
    for _ in range(5):
        assert torch.equal(again(), plain.step())
        assert all(torch.equal(a, b) for a, b in zip(plain.all, taped.all))


def test_a_result_is_not_changed_by_the_next_call():
    machine = Machine()
    _, again = tape(machine.step)
    kept = again()
    copy = kept.clone()
    again()
    assert torch.equal(kept, copy)


OPERATIONS = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "view": lambda a, b: a.reshape(-1).view(3, 3) + b,
    "transpose": lambda a, b: a.t() + b,
    "in place": lambda a, b: a.add_(b).clamp_(-9, 9),
    "into a view": lambda a, b: a.copy_(a.flip(0)) - b[:1],
    "copy": lambda a, b: a.clone(),
    "matmul": lambda a, b: (a @ b).tanh(),
    "where": lambda a, b: torch.where(a > b, a, 0.5),
    "split": lambda a, b: torch.cat(a.split(1), 0).roll(1, 0) + b.chunk(3)[1],
    "max": lambda a, b: a.max(0).values + b,
}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=14)
)
def test_any_sequence_of_operators(program):
    """Tensors 0 and 1 are buffers that live on; later ones are made anew in every call, read and written to."""

    def machine():
        g = torch.Generator().manual_seed(3)
        return [torch.randn(3, 3, generator=g), torch.randn(3, 3, generator=g)]

    def step(buffers):
        made = list(buffers)
        for name, a, b in program:
            made.append(OPERATIONS[name](made[a % len(made)], made[b % len(made)]))
        buffers[0].copy_(made[-1].tanh())
        return made[-1]

    plain, taped = machine(), machine()
    with torch.inference_mode():
        first, again = tape(lambda: step(taped))
        assert torch.equal(first, step(plain))
        for _ in range(3):
            assert torch.equal(again(), step(plain))
            assert all(torch.equal(a, b) for a, b in zip(plain, taped))


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x * x.sum().item(),
        lambda x: x if bool(x.sum() > 0) else -x,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.unique(x),
    ],
)
@pytest.mark.parametrize("inference", [True, False])
def test_what_looks_at_values_is_not_recorded(look, inference):
    with torch.inference_mode(inference), pytest.raises(NotRecordable, match="depends on the values"):
        record(lambda: look(torch.ones(3)), CPU)


@pytest.mark.parametrize("inference", [True, False])
def test_an_operator_that_returns_a_list_of_one(inference):
    with torch.inference_mode(inference):
        x = torch.ones(3)
        first, again = tape(lambda: (x * 2).chunk(1)[0] + torch.meshgrid(x * 1, indexing="ij")[0])
        assert torch.equal(first, again()) and again().tolist() == [3, 3, 3]


def test_a_function_may_return_nothing():
    x = torch.zeros(2)

    def step():
        x.add_(1)

    assert tape(step)[1]() is None and x.tolist() == [2, 2]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request):
    built = build(request.param)
    built.set_attn_implementation(NAME)
    return built


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(decode, "RECORD_AFTER", 0)


def plainly(monkeypatch):
    monkeypatch.setattr(decode, "_recordable", lambda model, policy: False)


PRESETS = {
    "fullkv": {},
    "recency": {"delta": 4},
    "alpha": {"delta": 4},
    "cask": {"delta": 4, "phases": False},
    "snapkv": {"delta": 4},
    "tri_adakv": {"delta": 4},
}


@pytest.mark.parametrize(("preset", "temperature"), [(p, "09"[i % 2]) for i, p in enumerate(PRESETS)])
def test_recorded_steps_give_the_same_trials(model, preset, temperature, tmp_path_factory, at_once, monkeypatch):
    policy = bound(model, preset, tmp_path_factory, **PRESETS[preset])
    sampling, budget = Sampling(26, float(temperature) / 10, 0.9, stop_ids=(5, 11)), 28
    recorded = run(model, requests(), policy, budget, sampling, slots=3)
    with monkeypatch.context() as m:
        plainly(m)
        assert recorded == run(model, requests(), policy, budget, sampling, slots=3)


def test_more_rows_than_sequences_leave_no_trace(model, at_once, monkeypatch):
    """With 16 slots rows come in twos, and the last sequences run beside empty ones."""
    policy, sampling = bound(model, "recency", delta=4), Sampling(26, 0.9, stop_ids=(5, 11))
    many = requests(23)
    usage = Usage()
    recorded = run(model, many, policy, 40, sampling, slots=16, usage=usage)
    assert usage.rows > usage.trial_rows > 0
    with monkeypatch.context() as m:
        plainly(m)
        assert recorded == run(model, many, policy, 40, sampling, slots=16)


def test_a_step_is_recorded_once_for_its_shape(model, monkeypatch):
    made = []
    monkeypatch.setattr(decode, "record", lambda *given: made.append(1) or record(*given))
    run(model, requests(2), bound(model, "recency", delta=4), 40, Sampling(60), slots=2)
    assert 1 <= len(made) <= 4  # of 59 steps: rows 1 and 2, and two widths


@pytest.mark.parametrize("preset", ["h2o", "kivi"])
def test_steps_that_need_the_host_are_not_recorded(model, preset, at_once, monkeypatch):
    def never(*_):
        raise AssertionError("recorded")

    monkeypatch.setattr(decode, "record", never)
    policy = bound(model, preset, **({"delta": 4} if preset == "h2o" else {"group_size": 4, "residual": 8}))
    assert len(run(model, requests(2), policy, 64, Sampling(20), slots=2)) == 2


class Broken:
    """A scorer that gives NaN from the second event of one sequence on."""

    def __init__(self, scorer, request):
        self.scorer, self.seed, self.name = scorer, request.seed, "broken"

    @property
    def needs(self):
        return self.scorer.needs

    def score(self, entries, candidates):
        scores = self.scorer.score(entries, candidates).clone()
        mine = (entries.seeds == _signed(self.seed)) & (entries.events >= 1)
        scores[:, mine] = torch.nan
        return scores


def test_an_event_that_fails_leaves_no_half_done_trial(model, at_once):
    """A sequence says its last token in the very step whose event breaks: it is not handed out, and those that are
    handed out are what they are alone."""
    policy, wanted = bound(model, "keydiff", delta=4), requests(6)
    free = run(model, wanted, policy, 28, Sampling(60, 0.9), slots=6)
    tried = 0
    for request in wanted:
        ids, events = free[request.key].output_ids, free[request.key].residency.events
        at = next((step for step, *_ in events[1:] if ids[step] not in ids[:step]), None)
        if at is None:
            continue
        tried += 1
        sampling = Sampling(60, 0.9, stop_ids=(ids[at],))
        alone = run(model, wanted, policy, 28, sampling, slots=6)
        assert len(alone[request.key].output_ids) == at + 1
        broken, seen = replace(policy, scorer=Broken(policy.scorer, request)), {}
        with pytest.raises(FloatingPointError, match="NaN scores"):
            for out in decode.generate(model, wanted, broken, policy.schedule(28), sampling, slots=6):
                seen[out.key] = out
        assert request.key not in seen
        assert all(out == alone[key] for key, out in seen.items())
    assert tried


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("preset", ["recency", "triattention", "alpha"])
def test_cuda_graphs_give_the_tokens_of_plain_steps(model, preset, tmp_path_factory, at_once, monkeypatch):
    policy = bound(model, preset, tmp_path_factory, delta=4, prompt="outside")
    device = build_on_cuda(model)
    graphs = run(device, requests(), policy, 6, Sampling(26), slots=3)
    with monkeypatch.context() as m:
        plainly(m)
        assert graphs == run(device, requests(), policy, 6, Sampling(26), slots=3)
