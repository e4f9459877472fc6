"""The kinds of field that every stored document shares. No room below this one."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"

Name = Annotated[str, Field(pattern=NAME)]
Param = str | int | bool
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Unknown fields are errors, values are not coerced, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def first_fault(error: ValidationError, whole: str = "", *, value: bool = False) -> str:
    """The first of pydantic's complaints as ``field: what is wrong``. `whole` names the document where the complaint
    is about all of it; `value` adds what was found."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or whole
    return f"{field}: {first['msg']}" + (f" (value {first['input']!r:.60})" if value else "")
