"""How closely a compressed cache follows given tokens: from numbers per token to numbers per trial
(docs/DEFINITIONS.md §8).

No torch here, and every mean is exactly rounded, so that a reviewer derives the same numbers from the same arrays on
any machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cask_eval.errors import RecordError

TOP = 5
"""top5: the given token is among this many most probable ones."""

ENDPOINTS = {"top1": True, "top5": True, "nll": False, "kl": False}
"""What a trial can be judged by → whether more is better; each also with `AFTER` behind its name."""

AFTER = "_after"


@dataclass(frozen=True)
class Tokens:
    """What a replay measured at each given token of a trial. Arrays [K, T]: K chains side by side (one for most
    methods), T given tokens.

    nll: negative log-probability of the given token in nats, float32. rank: how many tokens are at least as probable,
    counting from 1, of equally probable ones the lowest id first, int32: the token is the argmax where it is 1. kl:
    KL(full cache ‖ this cache) in nats over the next-token distribution, float32, or None. compressed: whether the
    cache that the token was predicted from had been compressed, bool."""

    nll: np.ndarray
    rank: np.ndarray
    kl: np.ndarray | None
    compressed: np.ndarray

    @classmethod
    def stacked(cls, parts: Sequence[Tokens]) -> Tokens:
        """Several chains over the same tokens, one below the other."""
        columns = zip(*((p.nll, p.rank, p.kl, p.compressed) for p in parts))
        return cls(*map(np.concatenate, columns))

    def __post_init__(self):
        arrays = {"nll": self.nll, "rank": self.rank, "compressed": self.compressed}
        arrays |= {} if self.kl is None else {"kl": self.kl}
        kinds = {"nll": np.float32, "rank": np.int32, "kl": np.float32, "compressed": np.bool_}
        for name, array in arrays.items():
            if array.ndim != 2 or array.shape != self.nll.shape or not array.size or array.dtype != kinds[name]:
                raise RecordError(
                    f"{name}: is {array.dtype} of shape {array.shape}; it must be {np.dtype(kinds[name])} [K, T], like "
                    f"nll {self.nll.shape}, with at least one chain and token"
                )
            if name in ("nll", "kl") and not (np.isfinite(array).all() and (array >= 0).all()):
                raise RecordError(f"{name}: holds a number that is negative or not finite")
        if (self.rank < 1).any():
            raise RecordError(f"rank: holds {self.rank.min()}; ranks count from 1")


@dataclass(frozen=True)
class Rates:
    """Means over `tokens` given tokens. top1, top5: shares whose rank is 1, at most 5. nll, kl: nats; kl is None where
    no full-cache distribution was given."""

    tokens: int
    top1: float
    top5: float
    nll: float
    kl: float | None

    @property
    def perplexity(self) -> float:
        """e^nll, infinite where that is beyond a float."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


@dataclass(frozen=True)
class Fidelity:
    """whole: over all tokens. after: over those that were predicted from a compressed cache, None without any.
    first_mismatch: index of the first token that was not the argmax, T when all were; of several chains the earliest.
    length: T."""

    whole: Rates
    after: Rates | None
    first_mismatch: int
    length: int

    @property
    def strict_prefix_ratio(self) -> float:
        """first_mismatch / T."""
        return self.first_mismatch / self.length

    def endpoint(self, name: str) -> float | None:
        """One of `ENDPOINTS`, with `AFTER` for tokens predicted from a compressed cache; None where it does not exist.
        Raises ValueError on another name."""
        base = name.removesuffix(AFTER)
        if base not in ENDPOINTS:
            raise ValueError(f"endpoint {name!r} is none of {', '.join(ENDPOINTS)}, with or without {AFTER}")
        rates = self.after if name.endswith(AFTER) else self.whole
        return None if rates is None else getattr(rates, base)


def summarise(tokens: Tokens) -> Fidelity:
    """The numbers of one trial. Chains count alike: each has T tokens."""
    length = tokens.nll.shape[1]
    missed = (tokens.rank > 1).any(0)
    everything = np.ones_like(tokens.compressed)
    return Fidelity(
        whole=_rates(tokens, everything),
        after=_rates(tokens, tokens.compressed) if tokens.compressed.any() else None,
        first_mismatch=int(missed.argmax()) if missed.any() else length,
        length=length,
    )


def _rates(tokens: Tokens, mask: np.ndarray) -> Rates:
    count = int(mask.sum())
    ranks = tokens.rank[mask]
    return Rates(
        tokens=count,
        top1=int((ranks == 1).sum()) / count,
        top5=int((ranks <= TOP).sum()) / count,
        nll=_mean(tokens.nll[mask]),
        kl=None if tokens.kl is None else _mean(tokens.kl[mask]),
    )


def _mean(values: np.ndarray) -> float:
    # Correctly rounded, and so the same on every machine; a SIMD sum is not.
    return math.fsum(values.tolist()) / len(values)
