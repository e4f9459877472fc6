"""Split manifests on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from cask_eval.canonical import loads
from cask_eval.errors import SplitError
from cask_eval.fields import first_fault
from cask_eval.splits.model import Manifest


def read(path: str | Path) -> Manifest:
    """The manifest in a file. Raises SplitError when it cannot be read or is not a manifest; whether its digests hold
    is `cask_eval.splits.check`'s question."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SplitError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    try:
        return Manifest.model_validate(loads(data))
    except ValidationError as error:
        raise SplitError(f"{path}: {first_fault(error, 'file', value=True)}") from None
    except ValueError as error:
        raise SplitError(f"{path}: is not strict JSON: {error}") from None


def text(manifest: Manifest) -> str:
    """The manifest as it stands in a file: indented for diffs, the same bytes on every platform."""
    return json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def write(path: str | Path, manifest: Manifest, overwrite: bool = False) -> None:
    """Write a manifest; one that is there already and says the same is left alone.

    Raises SplitError when the file holds anything else, unless `overwrite`: a frozen split does not change.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        try:
            same = read(path).digest() == manifest.digest()
        except SplitError:
            same = False
        if same:
            return
        raise SplitError(f"{path}: holds something else, and a frozen split does not change; write to another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(text(manifest).encode())
    os.replace(draft, path)
