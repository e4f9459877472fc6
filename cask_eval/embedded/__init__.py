"""The embedded models: tiny decoders trained on the chain task, so that a study runs offline on a laptop.

Each is a plain Hugging Face folder: ``AutoModelForCausalLM.from_pretrained(path("chain-s"))``. They are written by
``python -m cask_eval.embedded.train``. Importing this module does not import torch.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["NAMES", "path"]

#: The embedded models, smallest first.
NAMES = ("chain-s", "chain-m")


def path(name: str) -> Path:
    """The folder of the embedded model `name`."""
    if name not in NAMES:
        raise ValueError(f"{name!r} is no embedded model; use one of {', '.join(NAMES)}")
    return Path(__file__).resolve().parent / name
