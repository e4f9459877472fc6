"""The kinds of field that every stored document shares. No room below this one."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"

# pydantic makes a complaint of every wrong value, and pages of it when asked for the first.
MAX_FAULTS = 1000

Name = Annotated[str, Field(pattern=NAME)]
Param = str | int | bool
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Unknown fields are errors, values are not coerced, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def first_fault(error: ValidationError, whole: str = "", *, value: bool = False) -> str:
    """The first of pydantic's complaints as ``field: what is wrong``. `whole` names the document where the complaint
    is about all of it; `value` adds what was found."""
    if (count := error.error_count()) > MAX_FAULTS:
        return f"{whole or error.title}: {count} values are wrong"
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or whole
    return f"{field:.200}: {first['msg']}" + (f" (value {_short(first['input']):.60})" if value else "")


def _short(value: Any) -> str:
    """`repr`, but of a large collection or text only the start: what is wrong may be a whole file."""
    if isinstance(value, (dict, list)):
        return reprlib.repr(value)
    return repr(value[:60] if isinstance(value, str) else value)
