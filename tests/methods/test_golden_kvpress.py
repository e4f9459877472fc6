"""Our scorers against kvpress 0.5.5's on the same keys, values and queries, where the definitions coincide.

How the files were made: golden/README.md. Options are set to what kvpress has: softmax over the whole row, zero-padded
average pooling, four sinks left out of Expected Attention, its query statistics included.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cask_methods.attention import probabilities
from cask_methods.scorers.expected_attention import ExpectedAttentionScorer
from cask_methods.scorers.h2o import TRAIT, H2OScorer
from cask_methods.scorers.keydiff import KeyDiffScorer
from cask_methods.scorers.snapkv import SnapKVScorer
from cask_methods.scorers.tova import TOVAScorer
from safetensors import safe_open

from cask_eval.engine.contract import Entries, Geometry

FOLDER = Path(__file__).parent / "golden"
SINKS = 4


@pytest.fixture(params=["llama", "qwen3_yarn"])
def golden(request) -> tuple[Entries, dict[str, torch.Tensor]]:
    """The prompt as resident entries with all its queries remembered, and kvpress's scores by name."""
    with safe_open(str(FOLDER / f"kvpress_{request.param}.safetensors"), framework="pt") as f:
        scaling = json.loads(f.metadata()["about"])["scaling"]
        tensors = {name: f.get_tensor(name) for name in f.keys()}
    keys, queries = tensors["keys"], tensors["queries"]
    layers, rows, heads, n, dim = keys.shape
    geometry = Geometry(
        layers, queries.shape[2], heads, dim, tensors["inv_freq"], scaling, torch.float32, request.param
    )
    positions, length = torch.arange(n).expand(keys.shape[:-1]).contiguous(), torch.tensor([n])
    entries = Entries(
        keys, tensors["values"], positions, length, length, length * 0, length * 0, geometry, length, length
    )
    entries = replace(entries, queries=queries, query_positions=torch.arange(n)[None])
    return entries, {name.removeprefix("scores."): x for name, x in tensors.items() if name.startswith("scores.")}


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    assert want.std() > 1e-3  # far from constant, compared to what is tolerated
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_keydiff(golden):
    entries, scores = golden
    assert_same(KeyDiffScorer().score(entries, entries.resident), scores["keydiff"])


@pytest.mark.parametrize(
    ("name", "horizon", "epsilon"), [("expected_attention", 512, 0.0), ("expected_attention_near", 8, 0.01)]
)
def test_expected_attention(golden, name, horizon, epsilon):
    """kvpress takes its statistics from all queries but those of the sinks; horizon and step are ours already."""
    entries, scores = golden
    candidates = entries.positions >= SINKS
    got = ExpectedAttentionScorer(int(entries.length) - SINKS, horizon, epsilon).score(entries, candidates)
    assert_same(got[..., SINKS:], scores[name][..., SINKS:])


def test_tova(golden):
    """kvpress fixes the newest entry's score by hand."""
    entries, scores = golden
    got = TOVAScorer().score(entries, entries.resident).expand_as(scores["tova"])
    assert_same(got[..., :-1], scores["tova"][..., :-1])


@pytest.mark.parametrize(("name", "window", "kernel"), [("snapkv", 8, 5), ("snapkv_unpooled", 3, 1)])
def test_snapkv(golden, name, window, kernel):
    """kvpress fixes the window's scores by hand."""
    entries, scores = golden
    got = SnapKVScorer(window, kernel, "avg", "row", "mean").score(entries, entries.resident)
    assert_same(got[..., :-window], scores[name][..., :-window])


def test_h2o(golden):
    """kvpress divides each entry's sum by the queries that saw it, and averages over the group; ours are sums."""
    entries, scores = golden
    scorer, n = H2OScorer(), int(entries.length)
    attention = probabilities(entries, n)
    traits = {TRAIT: torch.zeros(entries.positions.shape)}
    for layer in range(entries.geometry.layers):
        # In two pieces, as a long prompt may come.
        for piece in (slice(0, 20), slice(20, n)):
            at = entries.query_positions[:, piece]
            scorer.observe(layer, attention[layer][..., piece, :], {TRAIT: traits[TRAIT][layer]}, at)
    got = scorer.score(replace(entries, traits=traits), entries.resident)
    assert_same(got / (n - entries.positions) / entries.geometry.groups, scores["observed_attention"])
