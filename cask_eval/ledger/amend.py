"""What an amendment may change, and how the change is written down. Pure functions of two protocol documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cask_eval.canonical import canonical
from cask_eval.ledger.events import Change, Register

#: Fields of a protocol that no trial depends on: they may still be amended when the held-out split is consumed.
READ_BY_THE_ANALYSIS = frozenset(
    {"hypothesis", "expected_effect", "expected_discordance", "matched_cache", "test", "branches"}
)


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Every difference between two protocol documents, at the deepest field that both have, in the fields' order."""
    return list(_changes(before, after, ""))


def _changes(before: Any, after: Any, where: str) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _changes(before.get(key, _NOTHING), after.get(key, _NOTHING), f"{where}.{key}".lstrip("."))
    elif before != after:
        yield Change(field=where, before=_text(before), after=_text(after))


_NOTHING = object()


def _text(value: Any) -> str:
    return "" if value is _NOTHING else canonical(value).decode()


def forbidden(made: list[Change]) -> list[str]:
    """The changed fields on which trials depend that have been run."""
    return [c.field for c in made if c.field.partition(".")[0] not in READ_BY_THE_ANALYSIS]


def locks(payload: Register) -> dict[str, Any]:
    """What a registration locks besides its protocol; an amendment after `consume` must repeat it."""
    kept = set(Register.model_fields) - {"protocol_path", "protocol_raw", "protocol_digest", "protocol", "warnings"}
    return payload.model_dump(mode="json", include=kept)
