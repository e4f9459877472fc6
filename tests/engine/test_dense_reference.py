"""The slot cache against a reference that never evicts: the whole sequence every step, under per-head 4-D masks.

The reference keeps its own book of which positions each (layer, KV head) still sees, scores them with its own slow
scorers from its own keys, and must arrive at the same kept positions and the same logits.
"""

import pytest
import torch
from engine_models import prompts
from test_generate import bound, statistics

from cask_eval.engine import registry
from cask_eval.engine.contract import Host
from cask_eval.engine.decode import Request, generate
from cask_eval.engine.model import geometry
from cask_eval.engine.sampling import Sampling

DELTA, BUDGET, STEPS = 4, 9, 26


class Watch:
    def __init__(self):
        self.kept, self.rows = [], []

    def logits(self, requests, logits):
        self.rows.append(logits[0].clone())

    def event(self, requests, before, after):
        p, keep = before.positions[:, 0], after.keep
        self.kept.append([[p[a, h][keep[a, 0, h]].tolist() for h in range(p.shape[1])] for a in range(p.shape[0])])


@pytest.fixture
def dense(plain):
    """forward(tokens, mask [L, H, T, T]) → (last logits, keys [L, H, T, D] rotated), by hand-written attention."""

    def forward(tokens, visible):
        keys = []

        def attend(module, q, k, v, attention_mask, scaling, **_):
            layer, groups = module.layer_idx, q.shape[1] // k.shape[1]
            keys.append(k[0])
            scores = torch.einsum("hqd,hkd->hqk", q[0], k[0].repeat_interleave(groups, 0)) * scaling
            scores = scores.masked_fill(~visible[layer].repeat_interleave(groups, 0), -torch.inf)
            out = torch.einsum("hqk,hkd->qhd", scores.softmax(-1), v[0].repeat_interleave(groups, 0))
            return out[None], None

        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register("dense_reference", attend)
        plain.set_attn_implementation("dense_reference")
        try:
            logits = plain(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        finally:
            plain.set_attn_implementation("eager")
        return logits, torch.stack(keys)

    return forward


def recency_scores(keys, positions, length, shape, stats, group):
    return positions.double()


def triattention_scores(keys, positions, length, shape, stats, group):
    """[n] fp64 for one (layer, KV head): un-rotate each key at its position, loop over distances, z-score, group max."""
    half = shape.head_dim // 2
    w = shape.inv_freq
    k = torch.complex(keys[:, :half].double(), keys[:, half:].double()) / shape.scaling
    k = k * torch.exp(-1j * w * positions[:, None])
    z = []
    for head in group:
        c, m = torch.complex(stats.c_re[head].double(), stats.c_im[head].double()), stats.m[head].double()
        total = 0
        for exponent in range(17):
            distance = (length - positions[:, None] + 2**exponent).double()
            rho = c * k.conj()
            total = total + (shape.scaling**2 * rho.abs() * torch.cos(w * distance + rho.angle())).sum(-1)
        s = total / 17 + (shape.scaling**2 * (m - c.abs()) * k.abs()).sum(-1)
        z.append((s - s.mean()) / s.std(correction=0).clamp_min(1e-6))
    return torch.stack(z).amax(0)


@pytest.mark.parametrize(
    "preset, prompt", [("recency", "compete"), ("triattention", "pinned"), ("triattention", "compete")]
)
@torch.inference_mode()
def test_kept_positions_and_logits_are_those_of_the_dense_reference(model, dense, preset, prompt, tmp_path_factory):
    shape, ids = geometry(model), prompts(1, 5, 8)[0]
    stats = None
    if preset == "triattention":
        path = statistics(model, tmp_path_factory)
        raw = registry.load("triattention").read_calibration(path)
        policy = registry.load(preset).make(preset, {"delta": DELTA, "prompt": prompt}).bind(Host(shape, str(path)))
        score = triattention_scores
    else:
        policy = bound(model, preset, delta=DELTA, sink=2)
        score = recency_scores
    watch = Watch()
    (out,) = generate(model, [Request(0, ids, 1)], policy, policy.schedule(BUDGET), Sampling(STEPS), probe=watch)

    layers, heads, groups = shape.layers, shape.kv_heads, shape.groups
    n, p = len(ids) + STEPS - 1, len(ids)
    visible = torch.ones(n, n, dtype=torch.bool).tril().repeat(layers, heads, 1, 1)
    gone = torch.zeros(layers, heads, n, dtype=torch.bool)
    tokens, kept, worst = list(ids), [], 0.0
    for step in range(STEPS):
        t = len(tokens)
        visible[:, :, t - 1, :] &= ~gone
        logits, keys = dense(tokens, visible[:, :, :t, :t])
        worst = max(worst, (logits - watch.rows[step]).abs().max().item())
        resident = t - int(gone[0, 0].sum())
        if step and resident >= BUDGET + DELTA:
            event = []
            for layer in range(layers):
                event.append([])
                for head in range(heads):
                    here = (~gone[layer, head, :t]).nonzero().squeeze(1)
                    pinned = {"recency": 2, "triattention": p if prompt == "pinned" else 0}[preset]
                    safe, rest = here[here < pinned], here[here >= pinned]
                    if preset == "triattention":
                        stats = type("S", (), {k: getattr(raw, k)[layer] for k in ("c_re", "c_im", "m")})
                    s = score(keys[layer, head][rest], rest, t, shape, stats, range(head * groups, (head + 1) * groups))
                    order = sorted(range(len(rest)), key=lambda i: (-float(s[i]), i))[: BUDGET - len(safe)]
                    stay = sorted([*safe.tolist(), *rest[order].tolist()])
                    event[-1].append(stay)
                    gone[layer, head, here] = True
                    gone[layer, head, stay] = False
            kept.append(event)
        tokens.append(int(logits.argmax()))
    assert len(kept) >= 4
    assert watch.kept == kept
    assert tuple(tokens[p:]) == out.output_ids
    assert worst < 1e-5 * max(1.0, logits.abs().max().item())
