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
    preset, of the classes it derives from, and of its scorer and selector. A preset of one package that composes
    parts of another depends on both. Raises MethodError when a package has no directory of its own."""
    parts = {kind.__module__ for method in methods for kind in _parts(method)}
    out = {}
    for top in sorted({module.partition(".")[0] for module in parts} - {"builtins", __package__.partition(".")[0]}):
        spec = importlib.util.find_spec(top)
        places = list(spec.submodule_search_locations or ()) if spec else []
        if len(places) != 1:
            raise MethodError(
                f"the source of package {top!r} is not one directory on this machine: {places}; a method "
                "must live in a package, so that its source can be locked"
            )
        out[top] = Path(places[0]).resolve()
    return out


def _parts(method: Method) -> set[type]:
    pieces = [method] if method.schedule(1).trigger == "never" else [method, method.scorer(), method.selector()]
    return {kind for piece in pieces for kind in type(piece).__mro__}


def describe(name: str) -> dict[str, Any]:
    """What `cask-eval methods show` prints; JSON-able."""
    from cask_eval.engine.method import type_name

    cls = load(name)
    made = cls()
    schedule = made.schedule(1)
    idle = schedule.trigger == "never"
    parameters = {}
    for key, field in cls.parameters().items():
        meta = field.metadata
        entry = {
            "default": field.default,
            "type": type_name(field),
            "doc": meta.get("doc", ""),
            "source": meta.get("source", ""),
        }
        entry |= {k: meta[k] for k in ("null", "low") if meta.get(k) is not None}
        if meta.get("choices"):
            entry["choices"] = list(meta["choices"])
        parameters[key] = entry
    return {
        "name": name,
        "summary": cls.summary,
        "paper": cls.paper,
        "entry_point": _point(name).value,
        "calibrated": cls.calibrated,
        "reference": cls.reference,
        "composition": {
            "scorer": None if idle else _name(made.scorer()),
            "selector": None if idle else _name(made.selector()),
            "allocation": "uniform",
            "cadence": "never" if idle else f"{schedule.trigger}({schedule.delta})",
            "representation": cls.representation,
        },
        "parameters": parameters,
        "deviations": list(cls.deviations),
    }


def _name(part: Any) -> str:
    return getattr(part, "name", type(part).__name__)
