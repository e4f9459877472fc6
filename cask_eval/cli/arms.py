"""Whether the methods of a protocol are installed and take its parameters; what only a machine with torch can say."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import product

from cask_eval.decide.budgets import lock_of
from cask_eval.decide.lint import Finding
from cask_eval.engine import registry
from cask_eval.errors import MethodError
from cask_eval.protocol.model import Protocol


def faults(protocol: Protocol) -> Iterator[Finding]:
    """An error for each arm whose method is not installed or does not take what it is given, tuned values included,
    and for each candidate that is void beforehand, because it treats the prompt differently. Only the first can be said
    without torch."""
    policies: dict[str, set[str]] = {}
    known, torch = registry.available(), importlib.util.find_spec("torch")
    for name, arm in protocol.arms.items():
        where = field_of(protocol, name)
        tune = getattr(arm, "tune", {})
        if arm.preset in known and not torch:
            continue
        for values in product(*tune.values()):
            try:
                method = registry.load(arm.preset).make(arm.preset, {**arm.params, **dict(zip(tune, values))})
                schedules = [lock_of(method.schedule(budget)) for budget in protocol.budgets]
                policies.setdefault(name, set()).update(schedule.prompt_policy for schedule in schedules)
            except MethodError as error:
                yield Finding("error", where, str(error))
                break
    yield from _void(protocol, policies)


def field_of(protocol: Protocol, arm: str) -> str:
    """Where the protocol describes an arm."""
    if arm == "baseline":
        return arm
    if arm in (c.name for c in protocol.controls):
        return f"controls[{arm}]"
    return "candidate" if len(protocol.candidates) == 1 else f"candidates[{arm}]"


def _void(protocol: Protocol, policies: dict[str, set[str]]) -> Iterator[Finding]:
    ours = policies.get("baseline")
    if protocol.matched_cache.prompt_policies == "any" or not ours:
        return
    for candidate in protocol.candidates:
        theirs = policies.get(candidate.name)
        if not theirs or theirs <= ours:
            continue
        yield Finding(
            "warning" if theirs & ours else "error",
            field_of(protocol, candidate.name),
            f"{candidate.preset} treats the prompt as {_words(theirs)}, the baseline ({protocol.baseline.preset}) as "
            f"{_words(ours)}, and where they differ a comparison is void; give both the same `prompt` under params, or "
            "register matched_cache.prompt_policies: any if the difference is part of what is compared",
        )


def _words(policies: set[str]) -> str:
    return " or ".join(repr(p) for p in sorted(policies))
