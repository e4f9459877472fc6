"""How two registrations differ, what an amendment may change, and how the change is written down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cask_eval.canonical import canonical
from cask_eval.ledger.events import Change, Register

#: Fields of a protocol that no trial depends on: they may still be amended when the held-out split is consumed.
READ_BY_THE_ANALYSIS = frozenset(
    {"hypothesis", "expected_effect", "expected_discordance", "matched_cache", "exclude", "test", "branches"}
)

_ABOUT_THE_PROTOCOL = {"protocol_path", "protocol_raw", "protocol_digest", "protocol", "warnings", "invocation"}
_NOTHING = object()


def changes(before: Register, after: Register) -> list[Change]:
    """Every difference between two registrations: of their protocols, then, under `locked.`, of all else they lock."""
    return [
        *differences(before.protocol, after.protocol),
        *differences(locks(before), locks(after), "locked"),
    ]


def locks(payload: Register) -> dict[str, Any]:
    """What a registration locks besides its protocol; lists whose items have names are by name."""
    kept = set(Register.model_fields) - _ABOUT_THE_PROTOCOL
    return {name: _by_name(value) for name, value in payload.model_dump(mode="json", include=kept).items()}


def differences(before: Any, after: Any, where: str = "") -> Iterator[Change]:
    """Every difference between two JSON values, at the deepest field that both have, in the fields' order."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            place = f"{where}.{key}" if where else key
            yield from differences(before.get(key, _NOTHING), after.get(key, _NOTHING), place)
    elif _text(before) != _text(after):  # in Python true equals 1
        yield Change(field=where, before=_text(before), after=_text(after))


def forbidden(made: list[Change]) -> list[str]:
    """The changed fields on which trials depend that have been run. The endpoint says what they are, and the dev split
    has chosen by it."""
    return [
        c.field
        for c in made
        if c.field.partition(".")[0] not in READ_BY_THE_ANALYSIS or c.field == "test.endpoint"
    ]


def _by_name(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
        return {v["name"]: v for v in value}
    return value


def _text(value: Any) -> str:
    return "" if value is _NOTHING else canonical(value).decode()
