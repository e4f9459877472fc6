"""The split manifest: a frozen list of problem ids with digests. Data only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cask_eval.canonical import canonical, digest, merkle_root
from cask_eval.fields import Digest, Name, Strict


class Item(Strict):
    """One problem. `digest` covers (id, prompt, answer); `text` covers the normalised prompt alone; `minhash` is a
    sketch of its word shingles for near-duplicate search where the text is not at hand."""

    id: Annotated[str, Field(min_length=1)]
    digest: Digest
    text: Digest
    minhash: Annotated[str, Field(pattern=r"^[0-9a-f]{256}$")]
    stratum: str


class Manifest(Strict):
    """A frozen split. `source` is what the task plug-in needs to produce the problems again. No field has a default:
    what is left out of the file would be no part of what is there, and yet of its digest."""

    manifest: Literal["cask-eval/split/1"]
    name: Name
    task: Name
    role: Literal["dev", "heldout"]
    source: dict[str, Any]
    rule: str = Field(description="How the items were drawn, in words.")
    items: Annotated[list[Item], Field(min_length=1)]
    merkle_root: Digest

    def root(self) -> str:
        return merkle_root(canonical(i.model_dump(mode="json")) for i in self.items)

    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))
