"""The full cache's own outputs on the dev split, generated once and known by a digest.

What nothing is ever evicted from does not depend on a cell's budget, and greedy outputs do not depend on a seed. So an
arm that runs the full cache at several budgets says the same in all of them, and its records are written from those of
the first (docs/adr/0021). On dev only: a held-out record is always of a trial that was run. And within one registration
only, because its records are the only place that outputs are kept in.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from decimal import Decimal

from cask_eval.canonical import digest
from cask_eval.ledger.events import Register
from cask_eval.protocol.keys import trial_seed
from cask_eval.protocol.model import FULL
from cask_eval.records.model import Record
from cask_eval.records.store import RecordStore
from cask_eval.runner.trials import Batch


def output_digest(registered: Register, batch: Batch) -> str | None:
    """What a batch's outputs follow from: the model's files, the prompts' tokens, how is decoded, on what. Batches of
    one digest have the same outputs. None where outputs may differ: another method than the full cache, sampling,
    held-out problems, and studies whose trials are replays."""
    generation = registered.protocol["generation"]
    if batch.phase != "dev" or batch.choice.preset != FULL or Decimal(generation["temperature"]) != 0:
        return None
    if registered.prompt is None or registered.protocol["test"]["endpoint"] != "accuracy":
        return None
    model = next(m for m in registered.models if m.name == batch.cell.model)
    return digest(
        {
            "model": model.digest,
            "prompts": registered.prompt.tokens[model.name],
            "generation": generation,
            "params": batch.choice.params,
            "environment": registered.environment.model_dump(mode="json"),
        }
    )


def copies(store: RecordStore, source: Batch, batch: Batch, seed_root: str, done: Container) -> Iterator[Record]:
    """The records of `batch` that are not in `done`, from those of `source`. One that failed is not copied: it may go
    better."""
    for r in list(store.read(source.cell.name, source.arm, source.config)):
        key = batch.key(r.problem, r.sample)
        if r.failure is None and key not in done:
            cell = batch.cell.name
            seed = trial_seed(seed_root, cell, r.problem, r.sample, phase=batch.phase)
            yield r.model_copy(update={"cell": cell, "arm": batch.arm, "config": batch.config, "seed": seed})
