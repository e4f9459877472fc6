"""Finds methods through the entry-point group ``cask_eval.methods``; no method is imported by name.

Listing works without torch; the rest imports the method.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cask_eval.errors import MethodError

if TYPE_CHECKING:
    from cask_eval.engine.contract import Geometry
    from cask_eval.engine.method import Method

GROUP = "cask_eval.methods"

# What a protocol can give a parameter; anything else would go unchecked.
PARAMETER_TYPES = ("int", "float", "bool", "str")


def available() -> dict[str, EntryPoint]:
    """Every installed method, by name. Raises MethodError when two packages claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise MethodError(
                f"two methods are called {point.name!r}: {other.value} and {point.value}; uninstall one of the packages"
            )
    return found


def _point(name: str) -> EntryPoint:
    methods = available()
    if name not in methods:
        near = difflib.get_close_matches(name, methods, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(methods) or 'none installed'}"
        raise MethodError(f"no method is called {name!r}; {hint}")
    return methods[name]


def load(name: str) -> type[Method]:
    """The preset class. Raises MethodError when there is none of that name, or it cannot be imported."""
    from cask_eval.engine.method import Method, type_name

    point = _point(name)
    try:
        cls = point.load()
    except (ImportError, AttributeError) as e:
        raise MethodError(f"method {name!r} ({point.value}) cannot be imported: {e}") from e
    if not (isinstance(cls, type) and issubclass(cls, Method) and dataclasses.is_dataclass(cls)):
        raise MethodError(f"method {name!r} ({point.value}) is not a dataclass derived from Method")
    for key, field in cls.parameters().items():
        if type_name(field) not in PARAMETER_TYPES:
            raise MethodError(
                f"method {name!r}: parameter {key} has type {field.type!r}; a protocol can give "
                f"{', '.join(PARAMETER_TYPES)}"
            )
    return cls


def source_packages(methods: Iterable[Method]) -> dict[str, Path]:
    """Top-level package → directory of its source, for every package that the methods are built from: that of the
    preset, of the classes it derives from, of its five parts, and of what those are composed of. A preset of one
    package that composes parts of another depends on both. Raises MethodError when a package has no directory of its
    own."""
    parts = {kind.__module__ for method in methods for kind in _parts(method)}
    out = {}
    for top in sorted({module.partition(".")[0] for module in parts} - {"builtins", __package__.partition(".")[0]}):
        spec = importlib.util.find_spec(top)
        places = list(spec.submodule_search_locations or ()) if spec else []
        if len(places) != 1:
            raise MethodError(
                f"the source of package {top!r} is not one directory on this machine: {places}; a method "
                f"must live in a package, so that its source can be locked: move {top}.py to {top}/__init__.py and "
                "install again"
            )
        out[top] = Path(places[0]).resolve()
    return out


def _parts(method: Method) -> set[type]:
    """Every class that a method is composed of. Only a cadence has no accessor that all presets share."""
    cadence = [method.cadence()] if hasattr(method, "cadence") else []
    return {kind for piece in (method, *method.parts(), *cadence) for kind in _kinds(piece)}


def _kinds(piece: Any) -> set[type]:
    """The classes of an object and of the dataclasses in its fields."""
    from cask_eval.engine.contract import inner

    return {kind for part in (piece, *inner(piece)) for kind in type(part).__mro__}


def reference_geometry() -> Geometry:
    """The sizes of a 7B model with grouped queries, for stating what a method remembers."""
    import torch

    from cask_eval.engine.contract import Geometry

    return Geometry(28, 28, 4, 128, torch.empty(0), 1.0, torch.bfloat16, "7B reference")


# Large enough for any preset's defaults to be scheduled.
_NOMINAL = 1024


def describe(name: str) -> dict[str, Any]:
    """What `cask-eval methods show` prints; JSON-able."""
    cls = load(name)
    made = cls()
    parameters = {key: _parameter(field) for key, field in cls.parameters().items()}
    return {
        "name": name,
        "summary": cls.summary,
        "paper": cls.paper,
        "entry_point": _point(name).value,
        "calibrated": made.calibrated,
        "reference": cls.reference,
        "mechanism": cls.mechanism or None,
        "composition": _composition(made),
        "state": _state(made),
        "parameters": parameters,
        "null": {key: p["null"] for key, p in parameters.items() if "null" in p},
        "deviations": list(cls.deviations),
    }


def _parameter(field: dataclasses.Field) -> dict[str, Any]:
    from cask_eval.engine.method import type_name

    meta = field.metadata
    entry = {
        "default": field.default,
        "type": type_name(field),
        "doc": meta.get("doc", ""),
        "source": meta.get("source", ""),
    }
    entry |= {k: meta[k] for k in ("null", "low") if meta.get(k) is not None}
    return entry | ({"choices": list(meta["choices"])} if meta.get("choices") else {})


def _composition(method: Method) -> dict[str, str | None]:
    """The five parts by name. Scorer, selector and allocation are None in a method without events, and the
    representation is how entries are stored."""
    schedule, packing = method.schedule(_NOMINAL), method.packing()
    idle = schedule.trigger == "never"
    scorer, selector, allocation, representation = map(_name, method.parts())
    cadence = {
        "never": "never",
        "every_step": "every_step",
        "boundary": f"boundary({schedule.earliest}..{schedule.delta})",
    }.get(schedule.trigger, f"{schedule.trigger}({schedule.delta})")
    stored = f"{packing.bits}-bit, groups of {packing.group}, newest {packing.residual} full" if packing else None
    forms = [*([] if idle else [representation]), *([stored] if stored else [])]
    return {
        "scorer": None if idle else scorer,
        "selector": None if idle else selector,
        "allocation": None if idle else allocation,
        "cadence": cadence + (f", {schedule.chains} chains" if schedule.chains > 1 else ""),
        "representation": " + ".join(forms) or None,
    }


def _state(method: Method) -> dict[str, Any]:
    """What the method remembers between events, in bytes of the reference geometry. `query_tokens`, `trait_tokens`: the
    same in cached tokens of a layer, once and for every cached token."""
    from cask_eval.engine.contract import needs_of

    shape, needs = reference_geometry(), needs_of(*method.parts())
    held, packing = method.footprint(shape), method.packing()
    token = held.heads * held.entry_bytes
    per_token = held.auxiliary_over(1, 0)
    return {
        "geometry": f"{shape.layers} layers, {shape.query_heads} query heads, {shape.kv_heads} KV heads, head_dim "
        f"{shape.head_dim}, {shape.dtype.itemsize} bytes a number",
        "queries": needs.queries,
        "query_bytes": held.fixed_bytes,
        "query_tokens": held.fixed_bytes / token,
        "traits": {
            name: {"bytes": trait.dtype.itemsize, "per": "token" if trait.shared else "entry of each layer and head"}
            for name, trait in sorted(needs.traits.items())
        },
        "trait_bytes": per_token,
        "trait_tokens": per_token / token,
        "bias": needs.bias or None,
        "packing": dataclasses.asdict(packing) if packing else None,
    }


def _name(part: Any) -> str:
    return getattr(part, "name", type(part).__name__)
