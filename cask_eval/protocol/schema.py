"""The protocol's JSON Schema, with which an editor completes and checks field names while one types."""

from __future__ import annotations

import json
from typing import Any

from cask_eval.protocol.model import Protocol

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a protocol. `load` checks more: ranges of decimals and rules across fields."""
    return {"$schema": DIALECT, **Protocol.model_json_schema(), "title": "cask-eval protocol"}


def schema_text() -> str:
    """`schema` as the file that an editor reads; the same bytes on every platform."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
