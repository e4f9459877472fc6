"""A method is a composition: scorer, selector, allocation, schedule (cadence) and representation, with protected
entries.

A preset is a frozen dataclass that derives from `Method`; its fields are its parameters. Field names that are
Python keywords carry a trailing underscore, which users never see (``lambda_`` is ``lambda``).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import torch
from torch import Tensor

from cask_eval.engine.contract import (
    Allocation,
    Compressed,
    Entries,
    Geometry,
    Host,
    Needs,
    Representation,
    Scorer,
    Selector,
    bound,
    inner,
    needs_of,
)
from cask_eval.errors import MethodError
from cask_eval.footprint import Footprint, Packing
from cask_eval.schedule import Schedule

Encode = Callable[[str], list[int]]


def param(
    default: Any,
    doc: str,
    *,
    source: str = "",
    choices: tuple = (),
    low: float | None = None,
    null: Any = dataclasses.MISSING,
) -> Any:
    """A documented parameter of a preset. `source` says where the default comes from; `null` is the setting that
    reproduces the reference bit for bit."""
    meta = {"doc": doc, "source": source, "choices": choices, "low": low}
    if null is not dataclasses.MISSING:
        meta["null"] = null
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class Method:
    """Base of every preset. Subclasses give the parts: `scorer`, `selector`, `allocation`, `representation`, and the
    `schedule`.

    summary: one line. paper: link. deviations: where and why it departs from the published code. reference: the
    preset that the null setting reproduces, if any. mechanism: its number in docs/DEFINITIONS.md §9, if it has one.
    exchangeable: whether another numbering of the KV heads would only renumber the decisions.
    """

    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    deviations: ClassVar[tuple[str, ...]] = ()
    reference: ClassVar[str | None] = None
    mechanism: ClassVar[str] = ""
    exchangeable: ClassVar[bool] = True

    @classmethod
    def make(cls, preset: str, params: dict[str, Any]) -> Method:
        """A preset from protocol parameters (decimal strings, ints, bools, words). Raises MethodError naming the
        parameter, the value and what is allowed."""
        known = cls.parameters()
        for name in params:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? It has" if near else "it has"
                raise MethodError(f"{preset}: unknown parameter {name!r}; {hint} {', '.join(known) or 'none'}")
        made = cls(**{known[k].name: _typed(preset, k, known[k], v) for k, v in params.items()})
        made.validate(preset)
        return made

    @classmethod
    def parameters(cls) -> dict[str, dataclasses.Field]:
        return {f.name.rstrip("_"): f for f in dataclasses.fields(cls)}

    def validate(self, preset: str) -> None:
        """Cross-parameter checks; raises MethodError."""

    def schedule(self, budget: int, encode: Encode | None = None) -> Schedule:
        """When events happen. `encode` (text → token ids) is needed only by a cadence that reads the text; without
        it, such a schedule knows no boundaries. Raises MethodError when the budget cannot be scheduled."""
        raise NotImplementedError

    def scorer(self) -> Scorer:
        raise NotImplementedError

    def selector(self) -> Selector:
        raise NotImplementedError

    def allocation(self) -> Allocation:
        raise NotImplementedError

    def representation(self) -> Representation:
        raise NotImplementedError

    @property
    def calibrated(self) -> bool:
        """Whether some part needs calibration statistics of the model."""
        return any(getattr(part, "calibrated", False) for part in self.parts())

    def parts(self) -> tuple[Scorer, Selector, Allocation, Representation]:
        return self.scorer(), self.selector(), self.allocation(), self.representation()

    def packing(self) -> Packing | None:
        """How keys and values are stored; None is full precision."""
        return None

    def footprint(self, geometry: Geometry) -> Footprint:
        """Bytes that the method holds for one sequence of this model."""
        needs = needs_of(*self.parts())
        traits = needs.traits.values()
        size = geometry.dtype.itemsize
        packing = self.packing()
        if packing and (fault := packing.fault(geometry.head_dim)):
            raise MethodError(fault)
        return Footprint(
            heads=geometry.layers * geometry.kv_heads,
            head_dim=geometry.head_dim,
            itemsize=size,
            packing=packing,
            trait_bytes=sum(t.dtype.itemsize for t in traits if not t.shared),
            shared_bytes=sum(t.dtype.itemsize for t in traits if t.shared),
            fixed_bytes=needs.queries * geometry.layers * geometry.query_heads * geometry.head_dim * size,
        )

    def protected(self, entries: Entries, target: Tensor) -> Tensor:
        """[L, R, H, n] bool: entries that an event must keep. `target` [R] is how many it leaves per head."""
        return torch.zeros_like(entries.positions, dtype=torch.bool)

    def protected_count(self, prompt_tokens: int) -> int:
        """How many entries `protected` marks at most, for the check that they fit the budget."""
        return 0

    def check(self, prompt_tokens: int, budget: int) -> None:
        """Refuse a prompt that the budget cannot hold, before anything runs. Raises MethodError."""
        for part in self.schedule(budget).split():
            self.admit(prompt_tokens, part)

    def admit(self, prompt_tokens: int, schedule: Schedule) -> None:
        """`check` for one chain's schedule."""
        if schedule.trigger == "never" or schedule.overflow != "refuse":
            return
        target, floor = schedule.target(prompt_tokens), self.protected_count(prompt_tokens)
        if floor >= target:
            raise MethodError(
                f"budget {schedule.budget} leaves {target} entries per head after an event, but {floor} are protected "
                f"(prompt of {prompt_tokens} tokens, prompt policy {schedule.prompt!r}); nothing generated could "
                f"be kept. Raise the budget{_remedy(schedule, floor)}"
            )

    @classmethod
    def calibrator(cls, geometry: Geometry) -> Any:
        """An accumulator with ``add(layer, queries [tokens, Hq, D])`` and ``finish(provenance)``, which returns
        statistics with ``save(path)``. Raises MethodError for a method that needs none."""
        raise MethodError(f"{cls.__name__} needs no calibration statistics")

    @classmethod
    def read_calibration(cls, path: Any) -> Any:
        """Statistics from a file, other projects' formats included. Raises MethodError."""
        raise MethodError(f"{cls.__name__} needs no calibration statistics")

    def bind(self, host: Host) -> Policy:
        """The method on one model. Raises MethodError when a part cannot work there."""
        return Policy(self, host, *(bound(part, host) for part in self.parts()))


@dataclass(frozen=True)
class Policy:
    """A method bound to a model: decides what an event keeps, and in what form. Raises MethodError when a part hides an
    observer."""

    method: Method
    host: Host
    scorer: Scorer
    selector: Selector
    allocation: Allocation
    representation: Representation

    def __post_init__(self):
        for part in self.parts:
            for hidden in inner(part):
                if hasattr(hidden, "observe") and not hasattr(part, "observe"):
                    raise MethodError(
                        f"{type(hidden).__name__} follows every attention read, but {type(part).__name__}, which holds "
                        "it, has no `observe` to pass that on"
                    )

    def schedule(self, budget: int) -> Schedule:
        return self.method.schedule(budget, self.host.encode)

    @property
    def parts(self) -> tuple[Scorer, Selector, Allocation, Representation]:
        return self.scorer, self.selector, self.allocation, self.representation

    @property
    def needs(self) -> Needs:
        return needs_of(*self.parts)

    @property
    def footprint(self) -> Footprint:
        return self.method.footprint(self.host.geometry)

    def compress(self, entries: Entries, target: Tensor) -> Compressed:
        """One event: on average over layers and heads exactly `target` [R] entries stay.
        Raises FloatingPointError on NaN scores, MethodError when a part breaks its contract."""
        entries, resident = replace(entries, target=target), entries.resident
        protected = self.method.protected(entries, target) & resident
        scores = self.scorer.score(entries, resident & ~protected).float()
        if torch.isnan(scores).any():
            raise FloatingPointError(f"{type(self.scorer).__name__} produced NaN scores; the event is refused")
        # A decision shared over layers or heads needs the same candidates and the same protection in all of them.
        candidates, protected = _shared(resident & ~protected, scores.shape), _shared(protected, scores.shape)
        quota = self.allocation.allocate(scores, candidates, protected, target)
        if bool((quota < 0).any()) or bool((quota > candidates.sum(-1)).any()):
            raise MethodError("an event cannot keep its target: too many entries are protected or too few resident")
        selection = self.selector.select(scores, candidates, quota, entries)
        picked = selection.keep
        if bool((picked & ~candidates).any() | (picked.sum(-1) != quota).any()):
            raise MethodError(f"{type(self.selector).__name__} did not select exactly its quota among the candidates")
        keep = (picked | protected).expand(entries.positions.shape)
        if bool((keep.sum((0, 2, 3)) != target * keep.shape[0] * keep.shape[2]).any()):
            raise MethodError(f"{type(self.allocation).__name__} did not share out exactly the budget")
        known = self.needs.traits.keys()
        if strange := (selection.traits.keys() - known) | (selection.notes.keys() & known):
            raise MethodError(
                f"{type(self.selector).__name__} gives {', '.join(sorted(strange))}; what is to be remembered must be "
                "among a part's `needs.traits`, and what is not belongs into `notes` under another name"
            )
        entries = replace(entries, traits={**entries.traits, **selection.traits, **selection.notes})
        entries, measures = self.representation.represent(entries, replace(selection, keep=keep))
        return Compressed(keep, entries, {**selection.measures, **measures})


def _remedy(schedule: Schedule, floor: int) -> str:
    if schedule.prompt == "pinned":
        return f" above {floor}, or set the parameter prompt to 'outside' or 'compete'"
    return ", or protect fewer entries (the parameters sink and recent)"


def _shared(mask: Tensor, shape: torch.Size) -> Tensor:
    for axis in (0, 2):
        if shape[axis] == 1 and mask.shape[axis] > 1:
            first = mask.narrow(axis, 0, 1)
            if not bool((mask == first).all()):
                raise MethodError("a shared decision needs the same protected entries in every layer and head")
            mask = first
    return mask


def type_name(field: dataclasses.Field) -> str:
    """The annotation as a word, whether or not annotations are postponed."""
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))


def _typed(preset: str, name: str, field: dataclasses.Field, value: Any) -> Any:
    kind = type_name(field)
    where = f"{preset}: parameter {name}"
    if kind == "float":
        try:
            number = float(Decimal(str(value)))
        except InvalidOperation:
            number = math.nan
        if not math.isfinite(number):
            raise MethodError(f'{where} is {value!r}; write a decimal in quotes, such as "0.5"')
        value = number
    elif kind == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        raise MethodError(f"{where} is {value!r}; write a whole number without quotes")
    elif kind == "bool" and not isinstance(value, bool):
        raise MethodError(f"{where} is {value!r}; write true or false")
    elif kind == "str" and not isinstance(value, str):
        raise MethodError(f"{where} is {value!r}; write a word")
    choices, low = field.metadata.get("choices"), field.metadata.get("low")
    if choices and value not in choices:
        raise MethodError(f"{where} is {value!r}; use one of {', '.join(map(str, choices))}")
    if low is not None and value < low:
        raise MethodError(f"{where} is {value!r}; it must be at least {low}")
    return value
