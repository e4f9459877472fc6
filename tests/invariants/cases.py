"""Every registered method, at a size that a test can afford. A newly installed method is picked up by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from cask_methods.calibration import Statistics

from cask_eval.engine import registry
from cask_eval.engine.contract import Entries, Geometry, Host
from cask_eval.engine.decode import Outcome, Request, generate
from cask_eval.engine.method import Method, Policy, type_name
from cask_eval.engine.model import geometry
from cask_eval.engine.sampling import Sampling
from cask_eval.errors import MethodError
from cask_eval.schedule import Schedule

# What a parameter of this name is set to, so that a few dozen tokens see several events.
SMALL = {
    "delta": 4,
    "earliest": 2,
    "recent": 4,
    "sink": 1,
    "window": 4,
    "group_size": 4,
    "residual": 8,
    "l_min": 4,
    "l_max": 16,
}

PROMPT, MARGIN = 13, 6


def small(name: str, **params) -> Method:
    cls = registry.load(name)
    whole = {k for k, f in cls.parameters().items() if type_name(f) == "int"}
    return cls.make(name, {**{k: v for k, v in SMALL.items() if k in whole}, **params})


def encode(text: str) -> list[int]:
    """A tokenizer of one token a text, for methods that look for words."""
    return [1 + sum(text.encode()) % 96]


@dataclass(frozen=True)
class Case:
    """One method on one model."""

    name: str
    method: Method

    @cached_property
    def budget(self) -> int:
        """The least budget that admits a prompt of PROMPT tokens, and MARGIN more."""
        for budget in range(1, 500):
            try:
                self.method.check(PROMPT, budget)
            except (MethodError, ValueError):
                continue
            return budget + MARGIN * self.method.schedule(budget + MARGIN).chains
        raise AssertionError(f"{self.name} admits no prompt of {PROMPT} tokens below budget 500")

    @property
    def new_tokens(self) -> int:
        """Enough for three events or more."""
        return self.budget + 4 * 4 + 2

    @property
    def idle(self) -> bool:
        """Never compresses anything."""
        return self.method.schedule(self.budget).trigger == "never"

    @property
    def evicts(self) -> bool:
        """What it keeps, it keeps as it was."""
        return not self.merges and self.method.packing() is None and not getattr(self.method, "reindex", False)

    @property
    def merges(self) -> bool:
        return getattr(self.method.representation(), "name", "") not in ("evict", "reindex")

    def policy(self, host: Host) -> Policy:
        return self.method.bind(host)

    def schedules(self, policy: Policy, budget: int | None = None) -> list[Schedule]:
        return policy.schedule(budget or self.budget).split()


NAMES = sorted(registry.available())


def case(name: str, **params) -> Case:
    return Case(name, small(name, **params))


def null_of(name: str) -> Method | None:
    """The method with every parameter that has a null setting at it; None when none has."""
    nulls = {k: f.metadata["null"] for k, f in registry.load(name).parameters().items() if "null" in f.metadata}
    if not nulls:
        return None
    spelled = {k: str(v) if isinstance(v, float) else v for k, v in nulls.items()}
    return small(name, **spelled)


def reference_of(null: Method) -> Method:
    """The method that a null setting must reproduce, with the parameters that both have."""
    reference = small(null.reference)
    shared = {k: getattr(null, null.parameters()[k].name) for k in reference.parameters() if k in null.parameters()}
    return replace(reference, **{reference.parameters()[k].name: v for k, v in shared.items()})


def host_of(model, path) -> Host:
    return Host(geometry(model), str(path), encode)


def requests(prompts, start=1) -> list[Request]:
    return [Request(i, ids, (i + start) * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128) for i, ids in enumerate(prompts)]


def run(model, wanted, policy, schedule, new, **kwargs) -> dict[object, Outcome]:
    kwargs = {"sampling": Sampling(new, 0.8, 0.95), "slots": 4, **kwargs}
    return {o.key: o for o in generate(model, wanted, policy, schedule, **kwargs)}


def on(policy: Policy, statistics: Statistics) -> Policy:
    """The policy with other calibration statistics, wherever its scorer keeps them."""
    scorer = policy.scorer
    return replace(policy, scorer=replace(scorer, statistics=statistics)) if hasattr(scorer, "statistics") else policy


def geometry_of(groups=2, kv_heads=2) -> Geometry:
    inv = 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    return Geometry(2, kv_heads * groups, kv_heads, 16, inv, 1.0, torch.float32, "tiny")


def counted(policy: Policy, e: Entries, budget: int) -> tuple[Entries, torch.Tensor]:
    """The entries as an event meets them under the policy's schedule, and how many it must leave a row."""
    schedule = policy.schedule(budget).split()[0]
    lengths = e.resident.sum(-1)[0, :, 0].tolist()
    done = [schedule.event(n, p, p) for n, p in zip(lengths, e.prompt_tokens.tolist())]
    kept = torch.tensor([d.prefix for d in done])
    return replace(e, prefix=e.prompt_tokens, prefix_kept=kept), torch.tensor([d.resident for d in done])
