"""Whole runs on a quantised cache, against plain attention over what the slow model of the storage holds."""

import pytest
import torch
from cask_methods.presets.fullkv import FullKV
from cask_methods.presets.kivi import Kivi
from cask_methods.presets.tri_kivi import TriKivi
from cask_methods.presets.triattention import TriAttention
from engine_models import prompts
from test_packed import Slow
from transformers.cache_utils import Cache, CacheLayerMixin

from cask_eval.engine.contract import Host
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry
from cask_eval.engine.queries import feed
from cask_eval.engine.sampling import Sampling
from cask_eval.footprint import Packing
from cask_eval.residency import walk

PRESETS = {"fullkv": FullKV, "kivi": Kivi, "triattention": TriAttention, "tri_kivi": TriKivi}
SMALL = {"group_size": 4, "residual": 8}


class Layer(CacheLayerMixin):
    """One layer, a slow store a head."""

    is_sliding = False

    def __init__(self, packing: Packing, heads: int):
        super().__init__()
        self.heads, self.is_initialized = [Slow(packing) for _ in range(heads)], True

    def lazy_initialization(self, *_):
        pass

    def update(self, key_states, value_states, *_, **__):
        if key_states.shape[2] > 1:
            self.place(key_states[0], value_states[0])
            return key_states, value_states
        for slow, key, value in zip(self.heads, key_states[0, :, 0].tolist(), value_states[0, :, 0].tolist()):
            slow.append(key, value)
        return self.keys_and_values()

    def place(self, keys, values):
        for slow, k, v in zip(self.heads, keys.tolist(), values.tolist()):
            slow.place(k, v)

    def keys_and_values(self):
        return tuple(torch.tensor([[getattr(s, name) for s in self.heads]]) for name in ("keys", "values"))

    def get_mask_sizes(self, query_length):
        return query_length, 0

    def get_seq_length(self):
        return 0

    def get_max_length(self):
        return -1

    get_max_cache_shape = get_max_length


class Watch:
    def __init__(self):
        self.rows, self.events = [], {}

    def logits(self, requests, logits):
        self.rows.append(logits[0].clone())

    def event(self, requests, before, after):
        self.events[len(self.rows)] = before, after


@pytest.fixture
def bind(model, tmp_path):
    def bound(preset, **params):
        method, path = PRESETS[preset].make(preset, params), None
        if method.calibrated:
            path = tmp_path / "c.safetensors"
            accumulator = type(method).calibrator(geometry(model))
            feed(model, [list(p) for p in prompts(4, 10, 30)], accumulator.add)
            accumulator.finish({}).save(path)
        return method.bind(Host(geometry(model), path and str(path)))

    return bound


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("preset", ["kivi", "tri_kivi"])
def test_attention_reads_what_the_slow_model_holds(model, plain, bind, preset, bits):
    params = {"delta": 6} if preset == "tri_kivi" else {}
    policy = bind(preset, bits=bits, **SMALL, **params)
    request, watch = Request("x", prompts(3)[1], 5), Watch()
    schedule = policy.schedule(24)
    (out,) = generate(model, [request], policy, schedule, Sampling(40), slots=1, probe=watch)
    g = policy.host.geometry
    layers = [Layer(policy.footprint.packing, g.kv_heads) for _ in range(g.layers)]
    cache, read = Cache(layers=layers), len(request.prompt_ids)
    logits = plain(torch.tensor([request.prompt_ids]), past_key_values=cache, use_cache=True).logits[:, -1]
    for step, row in enumerate(watch.rows):
        if step:
            held = len(layers[0].heads[0].keys)
            logits = plain(
                torch.tensor([[out.output_ids[step - 1]]]),
                position_ids=torch.tensor([[read]]),
                attention_mask=torch.zeros(1, 1, 1, held + 1),
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            read += 1
            for layer in layers:
                for slow in layer.heads:
                    slow.settle()
            if step in watch.events:
                before, after = watch.events[step]
                for a, layer in enumerate(layers):
                    keys, values = layer.keys_and_values()
                    assert torch.allclose(before.keys[a, 0], keys[0], atol=1e-3)
                    assert torch.allclose(before.values[a, 0], values[0], atol=1e-3)
                    keep = after.keep[a, 0]
                    layer.place(*(torch.stack([x[h][keep[h]] for h in range(len(x))]) for x in (keys[0], values[0])))
        assert torch.allclose(row, logits[0], rtol=1e-3, atol=1e-3 * float(logits.abs().max())), step
    assert len(watch.rows) == 40 and bool(watch.events) == (preset == "tri_kivi")
    assert out.residency == walk(schedule, policy.footprint, len(request.prompt_ids), 39, g.layers, out.output_ids)


@pytest.mark.parametrize("preset, reference", [("kivi", "fullkv"), ("tri_kivi", "triattention")])
def test_sixteen_bits_are_the_reference_token_for_token(model, bind, preset, reference):
    wanted = [Request(i, ids, i) for i, ids in enumerate(prompts(4))]
    params = {} if reference == "fullkv" else {"delta": 4, "prompt": "outside"}
    ours, theirs = bind(preset, bits=16, **params), bind(reference, **params)
    a, b = (
        {o.key: o for o in generate(model, wanted, p, p.schedule(8), Sampling(24, 0.9), slots=3)}
        for p in (ours, theirs)
    )
    assert a == b


@pytest.mark.parametrize("preset", ["kivi", "tri_kivi"])
def test_a_batch_equals_its_singles(model, bind, preset):
    params = {} if preset == "kivi" else {"delta": 6, "prompt": "outside"}
    policy = bind(preset, **SMALL, **params)
    wanted, sampling = [Request(i, ids, i) for i, ids in enumerate(prompts(5))], Sampling(30, 0.9)
    alone = {}
    for request in wanted:
        (alone[request.key],) = generate(model, [request], policy, policy.schedule(16), sampling, slots=1)
    for order, slots in ((wanted, 3), (wanted[::-1], 2)):
        together = {
            o.key: o for o in generate(model, order, policy, policy.schedule(16), sampling, slots=slots, poll=5)
        }
        assert together == alone
