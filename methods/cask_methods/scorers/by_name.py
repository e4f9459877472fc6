"""Scorers by their names, with the default parameters of their own files; for presets that wrap any of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cask_eval.errors import MethodError

_CLASSES = {
    "triattention": "TriAttentionScorer",
    "tova": "TOVAScorer",
    "expected_attention": "ExpectedAttentionScorer",
    "keydiff": "KeyDiffScorer",
    "r_kv": "RKVScorer",
    "snapkv": "SnapKVScorer",
    "h2o": "H2OScorer",
    "value_norm": "ValueNormScorer",
    "recency": "RecencyScorer",
}

NAMES = tuple(_CLASSES)

UNSCORED_WINDOW = ("snapkv", "r_kv")
"""Scorers that give the newest `window` entries no score: a method must keep these anyway."""


def build(name: str) -> Any:
    """The scorer called `name`; only its own module is imported. Raises MethodError for an unknown name."""
    if name not in _CLASSES:
        raise MethodError(f"no scorer is called {name!r}; use one of {', '.join(NAMES)}")
    return getattr(import_module(f"cask_methods.scorers.{name}"), _CLASSES[name])()
