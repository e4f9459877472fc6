"""Whether the methods of a protocol are installed and take its parameters; what only a machine with torch can say."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import product

from cask_eval.decide.lint import Finding
from cask_eval.engine import registry
from cask_eval.errors import MethodError
from cask_eval.protocol.model import Protocol


def faults(protocol: Protocol) -> Iterator[Finding]:
    """An error for each arm whose method is not installed or does not take what it is given, tuned values included.
    Parameters are left unchecked without torch."""
    known, torch = registry.available(), importlib.util.find_spec("torch")
    for name, arm in protocol.arms.items():
        where = "baseline" if name == "baseline" else f"arm {name}"
        tune = getattr(arm, "tune", {})
        if arm.preset in known and not torch:
            continue
        for values in product(*tune.values()):
            try:
                registry.load(arm.preset).make(arm.preset, {**arm.params, **dict(zip(tune, values))})
            except MethodError as error:
                yield Finding("error", where, str(error))
                break
