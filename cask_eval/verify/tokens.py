"""Whether stored outputs are what their token ids say, where the tokenizer is at hand.

The embedded models' tokenizers are word lists that come with the package, so they can be read without any library.
For other models the outputs stay the author's word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cask_eval
from cask_eval.canonical import digest_bytes
from cask_eval.ledger.events import ModelLock
from cask_eval.verify.check import Skip
from cask_eval.verify.evidence import Evidence

EMBEDDED = Path(cask_eval.__file__).parent / "embedded"


def decoded(e: Evidence) -> Iterator[str]:
    """One line per output that its token ids do not decode to, and a Skip for an embedded model whose tokenizer is
    another here than was locked: its outputs would have to be believed."""
    words = {}
    for model in e.register.models if e.register else ():
        if (found := words_of(model)) is not None:
            words[model.name] = found
        elif model.id.startswith("embedded:"):
            yield Skip(f"{model.id}: the tokenizer that was locked is not this package's, so tokens are not compared")
    if not words:
        return
    for role, file in (("dev", e.dev), ("heldout", e.heldout)):
        for r in file.records if file else ():
            known = words.get(r.cell.partition("/")[0])
            if known is None or r.status == "failed":
                continue
            where = f"{role}/{r.cell}/{r.arm}/{r.config}/{r.problem}/{r.sample}"
            for part in (r, *r.chains):
                if unknown := [i for i in part.output_ids if i not in known]:
                    yield f"{where}: the model has no token {unknown[0]}"
                elif " ".join(w for i in part.output_ids if (w := known[i])) != part.output:
                    yield f"{where}: the output is not what its token ids say"


def words_of(lock: ModelLock) -> dict[int, str] | None:
    """Token id → word, "" for a special token; None unless the very tokenizer that was locked is here and is a list
    of words."""
    name = lock.id.removeprefix("embedded:")
    if name == lock.id or not name.replace("-", "").isalnum():
        return None
    path = EMBEDDED / name / "tokenizer.json"
    if not path.is_file():
        return None
    data = path.read_bytes()
    if lock.files.get(path.name) != digest_bytes(data):
        return None
    tokenizer = json.loads(data)
    if tokenizer["model"]["type"] != "WordLevel" or tokenizer["decoder"] is not None:
        return None
    words = {i: word for word, i in tokenizer["model"]["vocab"].items()}
    return words | {t["id"]: "" for t in tokenizer["added_tokens"] if t["special"]}
