"""Which files the verification of a study reads, and the index over them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from cask_eval.bundle.errors import BundleError
from cask_eval.bundle.names import clash, fault
from cask_eval.canonical import loads
from cask_eval.fields import Digest, Name, Strict, first_fault
from cask_eval.workspace import Workspace

INDEX = "bundle.json"
README = "README.txt"
MAX_INDEX = 1 << 20


class Index(Strict):
    """`bundle.json`: `files` maps every other file to its digest, `head` is the hash of the ledger's last event."""

    bundle: Literal["cask-eval/bundle/1"] = "cask-eval/bundle/1"
    study: Name
    head: Digest
    files: Annotated[dict[str, Digest], Field(min_length=1)]


class Asked(Workspace):
    """A workspace that notes which files are asked for."""

    def __init__(self, root: str | Path):
        super().__init__(root)
        self.asked: set[str] = {self.ledger.relative_to(self.root).as_posix()}

    def resolve(self, rel: str) -> Path:
        path = super().resolve(rel)
        self.asked.add(path.relative_to(self.root).as_posix())
        return path


def index_of(data: bytes, where: str) -> Index:
    """The index in a file's bytes. Raises BundleError."""
    try:
        index = Index.model_validate(loads(data))
    except ValidationError as error:
        raise BundleError(f"{where}: {first_fault(error, 'file')}; this is no bundle of this version") from None
    except ValueError as error:
        raise BundleError(f"{where}: is not strict JSON: {str(error)[:200]}; fetch the bundle again") from None
    for name in index.files:
        if what := fault(name):
            raise BundleError(f"{where}: the name {name!r:.100} {what}; do not trust this bundle")
    if pair := clash((INDEX, *index.files)):
        raise BundleError(f"{where}: {pair[0]!r:.100} and {pair[1]!r:.100} are one file; do not trust this bundle")
    return index
